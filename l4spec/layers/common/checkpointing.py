"""Activation checkpointing: what is kept of a forward pass, what is computed again. Imports no torch."""

from typing import Literal, get_args

Checkpointing = Literal["none", "selective", "full"]
"""`none` keeps everything. `selective` computes the core of attention again, from queries and what is kept per token on
(arXiv:2205.05198, section 5); `full` keeps what enters each block and computes the whole block again."""

CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
"""From what is fastest to what keeps least."""
