"""Types that describe how a kind's module runs eagerly on a CPU: its allocations and its timed pieces.

Each kind keeps its own in `ledger.py`, beside the module that it mirrors, and names it in `LayerKind.eager`. It is
torch-free: `l4spec plan --gpus 1xthis` predicts times from pieces without building anything. A kind without one is
predicted from its declaration alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from l4spec.layers.base import Width
from l4spec.layers.common.ledger import Ledger
from l4spec.layers.declaration import Work


@dataclass(frozen=True, slots=True)
class Piece:
    """`times` runs of an operation that calibration measures: the name of its table, and the sizes to look up."""

    name: str
    sizes: tuple[float, ...]
    times: float = 1.0


@dataclass(frozen=True, slots=True)
class EagerLayer:
    """Execution of one kind's module: a forward pass of `(spec, width, work)` without gradients.

    `allocate` replays its allocations, the output last. `pieces` are the operations between its matrix products, given
    the number of experts that get rows (None: the declared ones). `code` is the kind whose calibrated constant applies
    to this code. `dense_ring`: with a sequence divided among ranks, each earlier rank's keys come as one dense block.
    """

    allocate: Callable[[Any, Width, Work, Ledger], None]
    pieces: Callable[[Any, Width, Work, float], Iterable[Piece]] | None
    code: str
    dense_ring: bool = False


def no_pieces(spec: object, width: Width, work: Work, hit: float) -> Iterable[Piece]:
    """Nothing between the products."""
    return ()


def norm_pieces(spec: object, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    """One norm of every token."""
    yield Piece("norm", (work.num_tokens * width.hidden_size, width.hidden_size))
