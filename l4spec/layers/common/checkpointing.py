"""Activation checkpointing: activations saved in the forward pass, and those recomputed in the backward pass."""

from typing import Literal, get_args

Checkpointing = Literal["none", "selective", "full"]
"""`none` keeps everything. `selective` recomputes the core of attention from queries and cached rows (arXiv:2205.05198,
section 5); `full` saves the input of each block and recomputes the whole block."""

CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
"""From the fastest to the one that saves the least."""
