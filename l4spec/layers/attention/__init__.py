"""What attention kinds share: masks, positions, walk, ledger, caches, kernels, ring."""
