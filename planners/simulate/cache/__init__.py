"""Blocks of the KV cache: who holds them, which are shared, and which go first when room is needed."""
