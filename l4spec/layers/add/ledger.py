"""Allocations and timed pieces of the module of a residual addition."""

from collections.abc import Iterator

from l4spec.layers.add.spec import AddSpec
from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import Ledger
from l4spec.layers.declaration import Work


def _allocate(spec: AddSpec, width: Width, work: Work, ledger: Ledger) -> None:
    total = work.num_tokens * width.hidden_size * ledger.item
    ledger.touch(min(2, spec.num_inputs - 1) * total)
    ledger.take(total)


def _pieces(spec: AddSpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    yield Piece("add", (work.num_tokens * width.hidden_size,), spec.num_inputs - 1)


EAGER = EagerLayer(_allocate, _pieces, code="add")
