"""Weight-only quantization for real: a scheme's rules as modules that hold packed weights, and their checkpoints."""
