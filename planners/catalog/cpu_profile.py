"""CPU profiles: measured seconds of our module's pieces by size, one set per number format.

Every number is a median that `l4spec calibrate` measured on the machine itself; nothing here is from a datasheet.
"""

from math import prod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import AsTuple, Size, Spec

Positive = Annotated[float, Field(gt=0)]
Axis = Annotated[tuple[Size, ...], AsTuple, Field(min_length=1)]


class SizeGrid(Spec):
    """Seconds at every point of a grid of sizes, the last axis fastest.

    `seconds` is measured again and again, with everything in the processor's caches; `cold` with weights and key-value
    caches that come from memory, and of smaller work when weights have just driven its code out of the caches.
    """

    axes: Annotated[tuple[Axis, ...], AsTuple, Field(min_length=1)]
    seconds: Annotated[tuple[Positive, ...], AsTuple]
    cold: Annotated[tuple[Positive, ...], AsTuple] = ()
    squares: Annotated[tuple[int, ...], AsTuple] = ()
    """Axes along which work grows with the square of the size."""

    @model_validator(mode="after")
    def _full(self) -> Self:
        points = prod(len(axis) for axis in self.axes)
        for name, values in (("seconds", self.seconds), ("cold", self.cold)):
            if len(values) != points and (values or name == "seconds"):
                raise ValueError(f"`{name}` has {len(values)} numbers for a grid of {points} points")
        if any(list(axis) != sorted(set(axis)) for axis in self.axes):
            raise ValueError("the sizes along an axis must grow")
        return self


class HotColdSeconds(Spec):
    """Seconds of an operation of fixed size, with everything in the processor's caches and without.

    The difference between a whole and its separately measured pieces: below 0 if the pieces share work.
    """

    seconds: float
    cold: float

    def at(self, cold: float) -> float:
        """Seconds where a share `cold` comes from memory."""
        return self.seconds + cold * (self.cold - self.seconds)


class Pieces(Spec):
    """Times of the pieces of our modules in one number format.

    `product`: x W^T by rows, inputs, outputs; `expert_product` of an expert's rows. `causal`: a prompt from its start
    by sequences x heads, tokens, head width. `masked`: queries after a past by sequences x heads, queries, keys, width.
    `cached`: a decode step by sequences x key heads, queries to a key head, tokens, width. `norm` by elements and width
    of a row; `route` by tokens, experts, experts per token; `dispatch` by (token, expert) pairs and experts; the others
    by elements.
    """

    product: SizeGrid
    expert_product: SizeGrid
    causal: SizeGrid
    masked: SizeGrid
    cached: SizeGrid
    norm: SizeGrid
    route: SizeGrid
    dispatch: SizeGrid
    add: SizeGrid
    scale: SizeGrid
    write: SizeGrid
    gather: SizeGrid
    fresh: SizeGrid
    """Memory of a new tensor, before anything is computed into it."""
    gate_silu: SizeGrid
    gate_gelu: SizeGrid
    gate_gelu_tanh: SizeGrid
    rotate_pairs: SizeGrid
    rotate_halves: SizeGrid
    expert: HotColdSeconds
    """Time of one more expert besides its products and its gate."""
    layer: dict[str, HotColdSeconds]
    """Time of a layer of a kind besides its pieces: Python, modules, views."""
    forward: HotColdSeconds
    """Time of a forward pass besides its layers."""


class Residency(Spec):
    """Share of the bytes read in every pass that comes from memory, from 0 (none) to 1 (all), by their number."""

    bytes: Annotated[tuple[Size, ...], AsTuple, Field(min_length=1)]
    share: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], AsTuple]

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.bytes) != len(self.share) or list(self.bytes) != sorted(set(self.bytes)):
            raise ValueError("`bytes` must grow, with one `share` each")
        return self


class EagerTimes(Spec):
    """A machine on which our module's time can be predicted; `threads` of torch's computed while it was measured."""

    processor: str
    threads: Size
    torch: str
    measured: str
    """The day."""
    turns: Size
    """Least number of repetitions of each measurement."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: the time that the one thread had the processor, on a machine that was busy otherwise."""
    resident: dict[str, Residency]
    """By number format."""
    pieces: dict[str, Pieces]
    """By number format."""

    def __hash__(self) -> int:
        """Hash of the identifying fields of a calibration; tables are left out."""
        return hash((self.processor, self.threads, self.torch, self.measured, self.turns))
