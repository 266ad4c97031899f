"""A runnable PyTorch module that executes a layer graph, its checkpoints, and generation."""
