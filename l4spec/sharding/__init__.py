"""Sharding: one rule table by which the planner divides tensors and the runtime cuts them."""
