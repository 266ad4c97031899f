"""Step time of online RL, synchronous and asynchronous, by discrete-event simulation."""
