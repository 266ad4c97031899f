"""Data of a recipe: sources, tokenizers, packing. What is in a step depends on seed and step alone."""
