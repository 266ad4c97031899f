"""Measuring this machine: what the pieces of our modules take, one by one and by size. Knows nothing of plans."""
