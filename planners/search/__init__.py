"""Search over deployments: legal layouts, suggestions, fewest GPUs, the cheapest for a service level."""
