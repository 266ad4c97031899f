"""Stored weight formats: from a config's quantization fields to `stored_as` of a spec."""
