"""Allocations and timed pieces of the module of a plain two-layer feed-forward network."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import Ledger, plain_ffn
from l4spec.layers.declaration import Work
from l4spec.layers.mlp.spec import MLPSpec


def _allocate(spec: MLPSpec, width: Width, work: Work, ledger: Ledger) -> None:
    plain_ffn(ledger, work.num_tokens, spec.intermediate_size, width.hidden_size)


def _pieces(spec: MLPSpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    gate = "gate_gelu" if spec.activation == "gelu" else "gate_gelu_tanh"  # every other one is timed as its like
    yield Piece(gate, (work.num_tokens * spec.intermediate_size,))


EAGER = EagerLayer(_allocate, _pieces, code="mlp")
