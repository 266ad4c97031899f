"""The layer graph: a DAG of layers with their declarations, from a resolved model."""
