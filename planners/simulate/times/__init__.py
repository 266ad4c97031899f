"""Seconds of a step: one interface, and where its numbers come from."""
