"""What the model is, counted: parameters, FLOPs, KV cache and state, stored weights."""
