"""Counts of a model: parameters, FLOPs, KV cache and state, stored weights."""
