"""Stage 4: the layer graph."""
