"""Storage of weights: packing laws, and rules that select the tensors of each law."""

from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field

from l4spec.layers.base import LARGEST, AsTuple, Spec
from l4spec.layers.declaration import Part, Role

ScaleDType = Literal["fp32", "bf16", "fp16", "fp8", "e8m0"]
PlainDType = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
ComputeDType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"]
BYTES_PER_ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "e8m0": 1}
"""Storage of one element of a type of whole bytes."""

T = TypeVar("T")
Many: TypeAlias = Annotated[tuple[T, ...], AsTuple]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=2**20)]


class PlainLaw(Spec):
    """Every element on its own, in a type of whole bytes."""

    kind: Literal["plain"]
    dtype: PlainDType
    """Type of an element."""


class ScaledLaw(Spec):
    """`bits` per weight and one scale per group, packed row by row into words so that no two rows share one."""

    kind: Literal["scaled"]
    bits: Annotated[int, Field(ge=1, le=8)]
    """Bits of a weight."""
    group: Literal["tensor", "row"] | Positive | Annotated[tuple[Positive, Positive], AsTuple]
    """Weights that share a scale: a matrix, an output row, a number along the input dim, or a block (outputs, inputs).

    A group along the input dim has to divide it. Blocks at the edges may be partial, and count in full."""
    scale_dtype: ScaleDType
    """Type of a scale."""
    zero_point_bits: Annotated[int, Field(ge=0, le=16)] = 0
    """Bits of each group's zero point; 0 is symmetric."""
    matrix_scale_dtype: ScaleDType | None = None
    """Type of a second scale, one per matrix (per expert in a stack of experts)."""
    word_bits: Literal[8, 16, 32] = 8
    """Bits of the words that weights are packed into."""
    values: Literal["int", "e4m3", "e2m1", "nf4"] = "int"
    """Format of stored values: integers, floats named by exponent and mantissa bits (fp8, fp4), or NF4's table."""


class BlockLaw(Spec):
    """Blocks of `weights` consecutive weights of a row that take `bytes` with their scales inside (GGUF)."""

    kind: Literal["block"]
    type: str
    """GGUF's name of the block's type, as `Q4_K`."""
    weights: Positive
    """Weights in a block."""
    bytes: Positive
    """Bytes of a block."""
    fallback: "BlockLaw | PlainLaw"
    """The law for a tensor whose rows are not whole blocks."""


Law: TypeAlias = Annotated[PlainLaw | ScaledLaw | BlockLaw, Field(discriminator="kind")]


class Target(NamedTuple):
    """Properties of a tensor that rules select by; `layer` is the index of its layer, from 0, among `num_layers`."""

    name: str
    part: Part
    role: Role
    layer: int | None = None
    num_layers: int | None = None
    tied: bool = False


def _as_names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Rule(Spec):
    """Tensors that fit every selector given are stored by `law`; a selector left out fits all."""

    parts: Many[Part] = ()
    """Parts of the model that a tensor may belong to."""
    roles: Many[Role] = ()
    """Roles of a tensor, as quantizers distinguish them."""
    names: Annotated[tuple[str, ...], AsTuple, BeforeValidator(_as_names)] = ()
    """Components of the tensor's name, one of which it must have: `down_proj` fits `shared_expert.down_proj.weight`."""
    layers: (
        Literal["all", "first", "last", "first_and_last", "inner", "first_eighth", "first_sixteenth", "use_more_bits"]
        | Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...], AsTuple]
    ) = "all"
    """`inner` is all but the first and the last; `first_eighth` and `first_sixteenth` that part of them, rounded down;
    `use_more_bits` the half that llama.cpp gives more bits; a list names the layers of the language model by index."""
    tied: bool | None = None
    """Selects models whose embedding is (true) or is not (false) also the output head; null selects both."""
    law: Law
    """Storage format of the selected tensors."""

    def fits(self, target: Target) -> bool:
        """True if the rule selects `target`."""
        return (
            (not self.parts or target.part in self.parts)
            and (not self.roles or target.role in self.roles)
            and (not self.names or not set(self.names).isdisjoint(target.name.split(".")))
            and (self.tied is None or self.tied == target.tied)
            and (self.layers == "all" or self._fits_layer(target))
        )

    def _fits_layer(self, target: Target) -> bool:
        if target.layer is None or target.num_layers is None:
            return False
        layer, last = target.layer, target.num_layers - 1
        if isinstance(self.layers, tuple):
            return layer in self.layers
        if self.layers == "use_more_bits":
            return uses_more_bits(layer, target.num_layers)
        chosen = {
            "first": (0,),
            "last": (last,),
            "first_and_last": (0, last),
            "inner": range(1, last),
            "first_eighth": range(target.num_layers // 8),
            "first_sixteenth": range(target.num_layers // 16),
        }
        return layer in chosen[self.layers]


def uses_more_bits(layer: int, num_layers: int) -> bool:
    """llama.cpp's choice of layers for a bigger type: the first and last eighth and every third in between.

    Source: ggml-org/llama.cpp src/llama-quant.cpp, `use_more_bits`.
    """
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


class StoredTable(Spec):
    """Storage formats of a checkpoint that no shipped scheme describes: the first rule that fits, else `default`."""

    method: Annotated[str, Field(min_length=1, max_length=60)]
    """Quantization method that the config names: `fp8`, `compressed-tensors`, `modelopt`, `gptq`, `awq`, `mxfp4` …"""
    description: Annotated[str, Field(min_length=1, max_length=200)]
    """One line for people."""
    compute_dtype: ComputeDType
    """Type in which matmuls of packed weights run: weight-only formats unpack to bf16."""
    default: Law
    """Format of tensors that no rule selects."""
    rules: Many[Rule] = ()
    """In order."""


SchemeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Stored: TypeAlias = SchemeName | StoredTable
