"""A quantization scheme as a rule table: which tensors are stored by which packing law."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field

from l4spec.catalog.entry import Entry, Source
from l4spec.catalog.registry import Registry, find_beside, looks_like_path
from l4spec.layers.base import AsTuple, Spec
from l4spec.layers.declaration import Part, Role

ScaleDType = Literal["fp32", "bf16", "fp16", "fp8", "e8m0"]
PlainDType = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
ComputeDType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"]
BYTES_PER_ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "e8m0": 1}
"""Storage of one element of a type of whole bytes."""

_REGROUPED = re.compile(r"(.+)-g([1-9][0-9]{0,5})")

T = TypeVar("T")
Many: TypeAlias = Annotated[tuple[T, ...], AsTuple]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=2**20)]


class PlainLaw(Spec):
    """Every element on its own, in a type of whole bytes."""

    kind: Literal["plain"]
    dtype: PlainDType


class ScaledLaw(Spec):
    """`bits` per weight and one scale per group, packed row by row into words so that no two rows share one."""

    kind: Literal["scaled"]
    bits: Annotated[int, Field(ge=1, le=8)]
    group: Literal["tensor", "row"] | Positive | Annotated[tuple[Positive, Positive], AsTuple]
    """What shares a scale: a matrix, an output row, so many weights along the input dim, or a block (outputs, inputs).

    A group along the input dim has to divide it. Blocks may stick out at the edges, where they count in full.
    """
    scale_dtype: ScaleDType
    zero_point_bits: Annotated[int, Field(ge=0, le=16)] = 0
    """Bits of each group's zero point; 0 is symmetric."""
    matrix_scale_dtype: ScaleDType | None = None
    """Type of a second scale, one per matrix (per expert in a stack of experts)."""
    word_bits: Literal[8, 16, 32] = 8
    values: Literal["int", "e4m3", "e2m1"] = "int"
    """What the bits are: whole numbers, or floats of so many exponent and mantissa bits (fp8, fp4)."""


class BlockLaw(Spec):
    """Blocks of `weights` consecutive weights of a row that take `bytes` with their scales inside (GGUF)."""

    kind: Literal["block"]
    type: str
    weights: Positive
    bytes: Positive
    fallback: "BlockLaw | PlainLaw"
    """The law for a tensor whose rows are not whole blocks."""


Law: TypeAlias = Annotated[PlainLaw | ScaledLaw | BlockLaw, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Target:
    """What a rule sees of a tensor; `layer` is its index from 0 among `num_layers`, for a tensor of a layer."""

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
    roles: Many[Role] = ()
    names: Annotated[tuple[str, ...], AsTuple, BeforeValidator(_as_names)] = ()
    """Components of the tensor's name, one of which it must have: `down_proj` fits `shared_expert.down_proj.weight`."""
    layers: Literal["all", "first", "last", "first_and_last", "inner", "use_more_bits"] = "all"
    """`inner` is all but the first and the last; `use_more_bits` the half that llama.cpp gives more bits."""
    tied: bool | None = None
    """Whether the embedding doubles as the output head."""
    law: Law

    def fits(self, target: Target) -> bool:
        """Whether this rule decides how `target` is stored."""
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
        if self.layers == "use_more_bits":
            return uses_more_bits(layer, target.num_layers)
        chosen = {"first": (0,), "last": (last,), "first_and_last": (0, last), "inner": range(1, last)}
        return layer in chosen[self.layers]


def uses_more_bits(layer: int, num_layers: int) -> bool:
    """llama.cpp's choice of layers for a bigger type: the first and last eighth and every third in between.

    Source: ggml-org/llama.cpp src/llama-quant.cpp, `use_more_bits`.
    """
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


class Quantization(Entry):
    """A scheme: the first rule that fits a tensor decides, else `default`."""

    source: Source
    compute_dtype: ComputeDType
    """Type in which quantized matmuls run: weight-only schemes unpack to bf16."""
    default: Law
    rules: Many[Rule] = ()

    @property
    def depends_on_layer(self) -> bool:
        """Whether equal layers may be stored differently, so that targets need their `layer`."""
        return any(rule.layers != "all" for rule in self.rules)

    def law_for(self, target: Target) -> PlainLaw | ScaledLaw | BlockLaw:
        """How `target` is stored."""
        return next((rule.law for rule in self.rules if rule.fits(target)), self.default)

    @property
    def group_sizes(self) -> frozenset[int]:
        """The sizes of its groups along the input dim; empty where it has none."""
        laws = (self.default, *(rule.law for rule in self.rules))
        return frozenset(law.group for law in laws if isinstance(law, ScaledLaw) and isinstance(law.group, int))


SCHEMES = Registry(Path(__file__).parent / "schemes", "quantization scheme")


def scheme_named(text: str) -> Quantization:
    """The scheme called `text`, or described by the YAML file at this path; `NAME-g32` is NAME with groups of 32.

    Raises UserError for an unknown name, and for other groups of a scheme that has none along the input dim.
    """
    match = _REGROUPED.fullmatch(text.strip())
    if match is None or looks_like_path(text) or SCHEMES.find(text) or find_beside(text):
        return SCHEMES.load(Quantization, text)
    base = scheme_named(match[1]) if SCHEMES.find(match[1]) or find_beside(match[1]) else None
    if base is None or not base.group_sizes:
        raise SCHEMES.unknown(text)
    return regrouped(base, int(match[2]))


@lru_cache(maxsize=64)
def regrouped(scheme: Quantization, size: int) -> Quantization:
    """The same scheme with groups of `size` where it has groups along the input dim."""

    def other(law: PlainLaw | ScaledLaw | BlockLaw) -> PlainLaw | ScaledLaw | BlockLaw:
        grouped = isinstance(law, ScaledLaw) and isinstance(law.group, int)
        return law.model_copy(update={"group": size}) if grouped else law

    return scheme.model_copy(
        update={
            "name": f"{scheme.name}-g{size}",
            "aliases": (),
            "description": f"{scheme.description}; in groups of {size}",
            "default": other(scheme.default),
            "rules": tuple(rule.model_copy(update={"law": other(rule.law)}) for rule in scheme.rules),
        }
    )
