"""Element-wise work as our layers call it: norms, rotations, gates, sums and copies, by the number of elements."""

from collections.abc import Callable
from functools import partial
from itertools import product as grid

import torch
from torch import Tensor

from l4spec.layers.attention.positions import Rope
from l4spec.layers.attention.rope import Rotation
from l4spec.layers.common.modules import Context, TokenLayout, activation, rms_norm
from l4spec.runtime.calibrate.buffers import Buffers
from l4spec.runtime.calibrate.tables import TableCases, Timed

ROW = 64
"""Width of the rows that are gathered, copied and scaled, and of the heads that are turned."""
_HEADS = 8
_PAGE = 4096


def streams(buffers: Buffers) -> dict[str, TableCases]:
    """A table of each piece by its number of elements."""
    makers: dict[str, Callable[[Buffers, int], Timed]] = {
        "add": _add,
        "scale": _scale,
        "write": _copy,
        "fresh": _fresh,
        "gather": _gather,
        "gate_silu": partial(_gate, "silu"),
        "gate_gelu": partial(_gate, "gelu"),
        "gate_gelu_tanh": partial(_gate, "gelu_tanh"),
        "rotate_pairs": partial(_rotate, "interleaved"),
        "rotate_halves": partial(_rotate, "half"),
    }
    return {name: _by_elements(buffers, make) for name, make in makers.items()} | {"norm": _norm(buffers)}


def _by_elements(buffers: Buffers, make: Callable[[Buffers, int], Timed]) -> TableCases:
    return TableCases.both(
        buffers, buffers.sizes.stream, [make(buffers, count) for (count,) in grid(*buffers.sizes.stream)]
    )


def _norm(buffers: Buffers) -> TableCases:
    cases = []
    for count, width in grid(*buffers.sizes.norm):
        x, weight = buffers.take(max(1, count // width), width), buffers.beside(width)
        cases.append(Timed(partial(rms_norm, x, weight, 1e-5), (x, weight)))
    return TableCases.both(buffers, buffers.sizes.norm, cases)


def _add(buffers: Buffers, count: int) -> Timed:
    inputs = buffers.take(count), buffers.beside(count)
    return Timed(partial(torch.add, *inputs), inputs)


def _scale(buffers: Buffers, count: int) -> Timed:
    inputs = buffers.take(count // ROW, ROW), buffers.beside(count // ROW, 1)
    return Timed(partial(torch.mul, *inputs), inputs)


def _copy(buffers: Buffers, count: int) -> Timed:
    """Rows into every other row of a larger tensor, as into a cache."""
    target = torch.zeros(count // ROW, 2 * ROW, dtype=buffers.dtype)[:, :ROW]
    rows = buffers.take(count // ROW, ROW)
    return Timed(partial(target.copy_, rows), (rows,))


def _fresh(buffers: Buffers, count: int) -> Timed:
    """New memory, touched once per page: the cost of a large result before any of it is computed."""
    stride = _PAGE // buffers.dtype.itemsize

    def run() -> None:
        torch.empty(count, dtype=buffers.dtype)[::stride] = 0

    return Timed(run)


def _gather(buffers: Buffers, count: int) -> Timed:
    rows = buffers.take(count // ROW, ROW)
    index = torch.randperm(count // ROW, generator=torch.Generator().manual_seed(0))
    return Timed(lambda: rows[index], (rows, index))


def _gate(name: str, buffers: Buffers, count: int) -> Timed:
    act, gate, up = activation(name), buffers.take(count), buffers.beside(count)

    def run() -> Tensor:
        result: Tensor = act(gate).mul_(up)
        return result

    return Timed(run, (gate, up))


def _rotate(layout: str, buffers: Buffers, count: int) -> Timed:
    heads = min(_HEADS, max(1, count // ROW))
    tokens = max(1, count // ROW // heads)
    rope = Rope.model_validate({"kind": "rope", "theta": 10000.0, "layout": layout})
    rotation = Rotation.of(rope, ROW, ROW)
    context = Context(TokenLayout(1, tokens, 0, torch.arange(tokens)))
    x = buffers.take(1, tokens, heads, ROW)
    return Timed(lambda: rotation(x, context), (x,))
