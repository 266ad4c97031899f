"""A plan's layout, run: each rank builds its own part of the model, and the parts work as one."""
