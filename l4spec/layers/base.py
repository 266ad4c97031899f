"""Base types of layer kinds: a strict schema, a declaration function and the path of the torch module."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from l4spec.layers.declaration import Declaration

Slot = Literal["embedding", "norm", "attention", "ffn", "head", "vision", "wiring"]
"""Position of a kind in a model; authors choose kinds for `norm`, `attention` and `ffn`."""


class Spec(BaseModel):
    """Base of everything an author writes: strict types, frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


S = TypeVar("S", bound=Spec)


def changed(spec: S, **fields: Any) -> S:
    """A copy of `spec` with other `fields`, validated again. Raises pydantic's ValidationError for a wrong value."""
    return type(spec).model_validate({**{name: getattr(spec, name) for name in type(spec).model_fields}, **fields})


class LayerSpec(Spec):
    """Base of a layer kind's schema; `kind` names the kind."""

    kind: Any

    @property
    def norms_input(self) -> bool:
        """True if the layer norms its input itself, so that its block puts no norm in front of it."""
        return False

    def narrowed(self, tp: int) -> Self:
        """The layer that each of `tp` tensor-parallel ranks computes, whose outputs add up to this one's.

        Kinds with axes that are cut (`l4spec.sharding.rules.MESH_AXIS`) override it; every other one is the same on all
        ranks. Sizes are assumed divisible: the caller has checked the layout.
        """
        return self

    def miniature(self, shrink: "Shrink") -> Self:
        """The same layer in smaller sizes; kinds with widths of their own override it (`l4spec.spec.scale`)."""
        return self


class Shrink(NamedTuple):
    """Rules by which a miniature of a model shrinks one layer: number of `heads`, and `width` relative to the stream.

    `per_head` takes (width of a head, heads before, heads in the miniature), so that all heads together shrink as the
    stream does.
    """

    heads: Callable[[int], int]
    width: Callable[[int], int]
    per_head: Callable[[int, int, int], int]


LARGEST = 2**40
"""Upper bound of any size in a spec: larger ones are mistakes, and products of a few of them still fit an integer."""

WIDEST = 2**24
"""Upper bound of sizes in one layer: 16 times the largest published, the 1,048,576 experts of PEER (arXiv:2407.04153).
A larger number is a slip, and every figure that followed from it would be one too."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


AsTuple = BeforeValidator(_as_tuple)
"""YAML has lists, frozen specs have tuples."""

Size = Annotated[int, Field(ge=1, le=LARGEST)]
LayerSize = Annotated[int, Field(ge=1, le=WIDEST)]
"""A width, or a number of heads, experts or entries of a vocabulary."""
Count = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e12)]


class InnerWidthSpec(LayerSpec):
    """Base of kinds with one width inside, of which each tensor-parallel rank computes a part."""

    intermediate_size: LayerSize

    def narrowed(self, tp: int) -> Self:
        """The inner width divided."""
        return self.model_copy(update={"intermediate_size": self.intermediate_size // tp})


class Width(NamedTuple):
    """Sizes of a layer's surroundings: the stream's width, the longest sequence, and the vocabulary of the text."""

    hidden_size: int
    max_seq_len: int
    vocab_size: int = 0


class LayerKind(NamedTuple):
    """A layer kind: schema, declaration, and `module:Class` of the torch module, imported only when built."""

    spec: type[LayerSpec]
    declare: Callable[[Any, Width], Declaration]
    module: str
    slot: Slot
    parallel: str | None = None
    """Class that takes the module's place on a rank of a mesh, where narrowing the spec is not all there is to it."""
    divides_sequence: bool = False
    """True if attention of this kind runs with the tokens of a sequence divided among ranks (its `parallel`)."""
    eager: str | None = None
    """`module:NAME` of an `EagerLayer`, which predicts the torch module's allocations and operations without torch."""
    is_peak_predicted: bool = True
    """True if the module's CPU peak memory is predicted: by `eager`, or without it by the buffers declared alive.

    False if those are of an engine's fused kernels alone: then a measured peak is shown beside them without a verdict.
    """

    @property
    def name(self) -> str:
        """Name of the kind, as `kind:` has it in YAML."""
        return str(get_args(self.spec.model_fields["kind"].annotation)[0])
