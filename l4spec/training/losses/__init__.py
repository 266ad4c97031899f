"""Losses as small functions of log probabilities, each with its formula and source, and as objectives of the loop."""
