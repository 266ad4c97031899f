"""How long does a step of online RL take, and what does asynchrony gain? Answers and updates, event by event."""
