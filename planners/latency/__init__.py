"""The latency planner: bounds by roofline, estimates by fitted factors, and their errors."""
