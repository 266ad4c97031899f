"""Memory of the most loaded device: weights, cache, activations, training state, engine overhead."""
