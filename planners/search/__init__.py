"""Which layout, and what would fit: legal layouts, suggestions, fewest GPUs."""
