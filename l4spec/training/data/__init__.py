"""Data of a recipe: sources, tokenizers, packing. What stands in a step depends on seed and step alone."""
