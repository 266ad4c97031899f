"""How long a step takes: machine, demand of a layer, engine step, closed loop, training step."""
