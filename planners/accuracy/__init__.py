"""Published figures and what the planner says of them."""
