"""Matrix products as our layers call them, and the share of repeatedly read memory that stays in the caches."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product as grid

from torch import Tensor

from l4spec.layers.common.modules import expert_linear, linear
from l4spec.runtime.calibrate.buffers import Buffers
from l4spec.runtime.calibrate.sizes import Grid
from l4spec.runtime.calibrate.tables import TableCases
from l4spec.runtime.calibrate.timing import Case, rotating

FEW_ENOUGH_TO_STREAM = 128
"""With more rows than this, the location of the rows matters too: they were just written by another operation, as in a
model."""
RESIDENT = (512, 1024)
"""Outputs and inputs of the matrices by which residency is measured: reading them takes longer than calling for it."""


def products(buffers: Buffers) -> TableCases:
    """x W^T by rows, inputs and outputs: the same weights each time, and weights that come from memory."""
    return _products(buffers, buffers.sizes.product, linear)


def expert_products(buffers: Buffers) -> TableCases:
    """The same for the rows of one expert."""
    return _products(buffers, buffers.sizes.expert_product, expert_linear)


def _products(buffers: Buffers, axes: Grid, multiply: Callable[[Tensor, Tensor], Tensor]) -> TableCases:
    hot, cold = [], []
    for rows, inputs, outputs in grid(*axes):
        x = buffers.beside(rows, inputs)
        hot.append(Case(partial(multiply, x, buffers.take(outputs, inputs))))
        written = partial(x.mul_, 1.0) if rows > FEW_ENOUGH_TO_STREAM else None
        cold.append(
            Case(rotating([partial(multiply, x, weight) for weight in buffers.pieces(outputs, inputs)]), written)
        )
    return TableCases(axes, hot, cold)


def residency(buffers: Buffers) -> TableCases:
    """A vector through matrices that together take so many bytes, one after the other."""
    x, cases = buffers.beside(1, RESIDENT[1]), []
    for num_bytes in buffers.sizes.residency:
        matrices = buffers.pieces(*RESIDENT, num_bytes=num_bytes)
        cases.append(Case(partial(_all, [partial(linear, x, matrix) for matrix in matrices])))
    return TableCases((buffers.sizes.residency,), cases)


def _all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()
