"""Allocations and timed pieces of the module of the token embedding."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import Ledger
from l4spec.layers.declaration import Work
from l4spec.layers.embedding.spec import EmbeddingSpec


def _allocate(spec: EmbeddingSpec, width: Width, work: Work, ledger: Ledger) -> None:
    rows = work.num_tokens * width.hidden_size * ledger.item
    ledger.touch(rows if spec.scale is None else 2 * rows)
    ledger.take(rows)


def _pieces(spec: EmbeddingSpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    yield Piece("gather", (work.num_tokens * width.hidden_size,))


EAGER = EagerLayer(_allocate, _pieces, code="embedding")
