"""How a model is divided among devices: one rule table that the planner divides by and the runtime cuts by."""
