"""Time of a step: machine, demand of a layer, engine step, closed loop, training step."""
