"""Plan against measurement, and claims against the plan."""
