"""KV cache blocks: pool, shared prefixes, and eviction."""
