"""Clusters that train a model by a deadline, with their prices."""
