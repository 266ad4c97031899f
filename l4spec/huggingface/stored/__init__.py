"""How a checkpoint stores its weights, from what its config says to `stored_as` of a spec."""
