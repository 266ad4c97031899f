"""Allocations and timed pieces of the module of SwiGLU."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import Ledger, gated_ffn
from l4spec.layers.declaration import Work
from l4spec.layers.swiglu.spec import SwiGLUSpec


def _allocate(spec: SwiGLUSpec, width: Width, work: Work, ledger: Ledger) -> None:
    gated_ffn(ledger, work.num_tokens, spec.intermediate_size, width.hidden_size)


def _pieces(spec: SwiGLUSpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    yield Piece("gate_silu", (work.num_tokens * spec.intermediate_size,))


EAGER = EagerLayer(_allocate, _pieces, code="swiglu")
