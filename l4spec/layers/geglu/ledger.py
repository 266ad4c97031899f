"""Allocations and timed pieces of the module of GeGLU, whose code is SwiGLU's."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import Ledger, gated_ffn
from l4spec.layers.declaration import Work
from l4spec.layers.geglu.spec import GeGLUSpec


def _allocate(spec: GeGLUSpec, width: Width, work: Work, ledger: Ledger) -> None:
    gated_ffn(ledger, work.num_tokens, spec.intermediate_size, width.hidden_size)


def _pieces(spec: GeGLUSpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    gate = "gate_gelu_tanh" if spec.approximate == "tanh" else "gate_gelu"
    yield Piece(gate, (work.num_tokens * spec.intermediate_size,))


EAGER = EagerLayer(_allocate, _pieces, code="swiglu")
