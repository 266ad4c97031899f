"""Schedulers of inference engines: one policy class each, with defaults that are catalogue data."""
