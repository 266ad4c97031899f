"""Training: recipes that run, small on one process or by the layouts of `l4spec.distribute`."""
