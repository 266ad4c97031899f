"""Quantization schemes: one rule table and one set of packing laws; planner and runtime store tensors by the same."""
