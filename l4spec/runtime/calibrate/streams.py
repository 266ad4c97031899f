"""Element-wise work as our layers call it: norms, rotations, gates, sums and copies, by the number of elements."""

from collections.abc import Callable
from functools import partial
from itertools import product as grid

import torch
from torch import Tensor

from l4spec.layers.attention.positions import Rope
from l4spec.layers.attention.rope import Rotation
from l4spec.layers.common.modules import Context, TokenLayout, activation, rms_norm
from l4spec.runtime.calibrate.buffers import Room
from l4spec.runtime.calibrate.tables import TableCases, Timed

ROW = 64
"""Width of the rows that are gathered, copied and scaled, and of the heads that are turned."""
_HEADS = 8
_PAGE = 4096


def streams(room: Room) -> dict[str, TableCases]:
    """A table of each piece by its number of elements."""
    makers: dict[str, Callable[[Room, int], Timed]] = {
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
    return {name: _by_elements(room, make) for name, make in makers.items()} | {"norm": _norm(room)}


def _by_elements(room: Room, make: Callable[[Room, int], Timed]) -> TableCases:
    return TableCases.both(room, room.sizes.stream, [make(room, count) for (count,) in grid(*room.sizes.stream)])


def _norm(room: Room) -> TableCases:
    cases = []
    for count, width in grid(*room.sizes.norm):
        x, weight = room.take(max(1, count // width), width), room.beside(width)
        cases.append(Timed(partial(rms_norm, x, weight, 1e-5), (x, weight)))
    return TableCases.both(room, room.sizes.norm, cases)


def _add(room: Room, count: int) -> Timed:
    inputs = room.take(count), room.beside(count)
    return Timed(partial(torch.add, *inputs), inputs)


def _scale(room: Room, count: int) -> Timed:
    inputs = room.take(count // ROW, ROW), room.beside(count // ROW, 1)
    return Timed(partial(torch.mul, *inputs), inputs)


def _copy(room: Room, count: int) -> Timed:
    """Rows into every other row of a larger tensor, as into a cache."""
    target = torch.zeros(count // ROW, 2 * ROW, dtype=room.dtype)[:, :ROW]
    rows = room.take(count // ROW, ROW)
    return Timed(partial(target.copy_, rows), (rows,))


def _fresh(room: Room, count: int) -> Timed:
    """New memory, touched once a page: what a large result costs before a number of it is computed."""
    stride = _PAGE // room.dtype.itemsize

    def run() -> None:
        torch.empty(count, dtype=room.dtype)[::stride] = 0

    return Timed(run)


def _gather(room: Room, count: int) -> Timed:
    rows = room.take(count // ROW, ROW)
    index = torch.randperm(count // ROW, generator=torch.Generator().manual_seed(0))
    return Timed(lambda: rows[index], (rows, index))


def _gate(name: str, room: Room, count: int) -> Timed:
    act, gate, up = activation(name), room.take(count), room.beside(count)

    def run() -> Tensor:
        result: Tensor = act(gate).mul_(up)
        return result

    return Timed(run, (gate, up))


def _rotate(layout: str, room: Room, count: int) -> Timed:
    heads = min(_HEADS, max(1, count // ROW))
    tokens = max(1, count // ROW // heads)
    rope = Rope.model_validate({"kind": "rope", "theta": 10000.0, "layout": layout})
    rotation = Rotation.of(rope, ROW, ROW)
    context = Context(TokenLayout(1, tokens, 0, torch.arange(tokens)))
    x = room.take(1, tokens, heads, ROW)
    return Timed(lambda: rotation(x, context), (x,))
