"""Data of a recipe: sources, tokenizers, packing. The contents of a step depend on seed and step alone."""
