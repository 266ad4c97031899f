"""Miniatures: the same structure in smaller sizes, small enough to run on this machine.

Kept: the pattern of layers, the ratio of query to key/value heads, every width relative to the residual stream, the
number of experts, top-k, groups and shared experts, chunks and windows relative to the longest sequence, the fold of
the image grid. Left out: claims and estimates, which are about the original.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from l4spec.errors import UserError
from l4spec.layers.attention.masks import ChunkedMask, GridWindowMask, Mask, SlidingWindowMask
from l4spec.layers.attention.positions import ImageSections, Llama3Scaling, Position, Rope, YarnScaling
from l4spec.layers.base import LayerSpec, S, Shrink, changed
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.mla.spec import LatentSpec
from l4spec.spec.model import (
    MAX_LAYERS,
    BlockSpec,
    GroupSpec,
    ModelSpec,
    StackSpec,
    TextSpec,
    TowerSpec,
    VisionSpec,
)

Scale = Fraction | Literal["tiny"]
TINY_HIDDEN_SIZE = 64
TINY_VOCAB_SIZE = 512
_MULTIPLE = 8
_SHORTEST = 16
"""Tokens of the smallest chunk, window or step of the temperature."""
_SHORTEST_CONTEXT = 1024
_SMALLEST_VOCAB = 256
_FFN_WIDTHS = ("intermediate_size", "shared_intermediate_size", "latent_size")
_RATIO = re.compile(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,6})\Z")


def parse_scale(text: str) -> Scale:
    """`tiny`, or a ratio of at most 1 as `1/64`. Raises UserError."""
    if text == "tiny":
        return "tiny"
    match = _RATIO.match(text)
    if match and int(match[1]) <= int(match[2]):
        return Fraction(int(match[1]), int(match[2]))
    raise UserError(f"expected tiny or a ratio of at most 1, found {text[:60]!r}", hint="like --scale 1/64")


def scale_spec(spec: ModelSpec, scale: Scale = Fraction(1), *, num_layers: int | None = None) -> ModelSpec:
    """A miniature of `spec`: widths and lengths times `scale`, and of its blocks the first `num_layers`.

    `tiny` makes the stream about 64 wide, the vocabulary 512, and lays each pattern once. Widths are rounded to
    multiples of 8 and heads to at least two, so that counts shrink about as `scale` squared: no checkpoint of the
    original fits. Raises UserError if the model has fewer blocks than requested.
    """
    if num_layers is not None and not 1 <= num_layers <= spec.text.num_layers:
        raise UserError(f"--layers: expected 1 to {spec.text.num_layers} layers, found {num_layers}")
    text, vision = spec.text, spec.vision
    sizes = _Factors.tiny(text) if scale == "tiny" else _Factors(scale, scale)
    if sizes != _Factors(Fraction(1), Fraction(1)):
        text = _scaled_text(text, sizes)
        vision = _scaled_vision(vision, sizes, text.hidden_size) if vision else None
    if scale == "tiny":
        text = changed(text, vocab_size=min(TINY_VOCAB_SIZE, spec.text.vocab_size), layers=_laid_once(text.layers))
        vision = _with_tower(vision, _with_layers(vision.tower, _laid_once(vision.tower.layers))) if vision else None
    if num_layers is not None:
        text = _with_layers(text, tuple(_first_blocks(text.layers, num_layers)))
    vision = _with_tower(vision, vision.tower, text.num_layers) if vision and vision.deepstack else vision
    return _derived(spec, text, vision, scale, num_layers)


@dataclass(frozen=True, slots=True)
class _Factors:
    """Factors of widths and of lengths in a miniature."""

    width: Fraction
    length: Fraction

    @classmethod
    def tiny(cls, text: TextSpec) -> "_Factors":
        """Lengths shrink until the smallest chunk or window is 16 tokens, so that a short run crosses several."""
        local = [size for spec in text.parts.values() if (size := _local_size(getattr(spec, "mask", None)))]
        width = min(Fraction(1), Fraction(TINY_HIDDEN_SIZE, text.hidden_size))
        return cls(width, min(Fraction(1), Fraction(_SHORTEST, min(local))) if local else width)

    def length_of(self, tokens: int) -> int:
        """So many tokens in the miniature."""
        return min(tokens, max(_SHORTEST, round(tokens * self.length)))


@dataclass(frozen=True, slots=True)
class _Shrunk:
    """A stack's sizes: widths follow `ratio`, the new width of its stream to the old one."""

    factors: _Factors
    ratio: Fraction

    def part(self, spec: LayerSpec) -> LayerSpec:
        """A named part in the miniature."""
        if isinstance(spec, GQASpec):
            return self._gqa(spec)
        if isinstance(spec, LatentSpec):
            return self._latent(spec)
        widths = {name: _width(size, self.ratio) for name in _FFN_WIDTHS if (size := getattr(spec, name, None))}
        return changed(spec, **widths) if widths else self._by_itself(spec)

    def _by_itself(self, spec: LayerSpec) -> LayerSpec:
        """The miniature that a kind makes of itself, with its rotation's scaling for shorter sequences."""
        small = spec.miniature(self._shrink())
        position = getattr(small, "position", None)
        return small if position is None else changed(small, position=self._position(position, Fraction(1)))

    def _shrink(self) -> Shrink:
        return Shrink(
            heads=lambda count: _fewer(count, self.factors.width),
            width=lambda size: _width(size, self.ratio),
            per_head=lambda dim, before, after: _width(dim, min(Fraction(1), self.factors.width * before / after)),
        )

    def _gqa(self, spec: GQASpec) -> GQASpec:
        heads, kv_heads, head_dim = _heads(spec.num_heads, spec.num_kv_heads, spec.head_dim, self.factors.width)
        fields: dict[str, Any] = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
        if spec.v_head_dim is not None:
            fields["v_head_dim"] = max(1, round(spec.v_head_dim * head_dim / spec.head_dim))
        if spec.scale is not None:
            fields["scale"] = _scaled_softmax(spec.scale, head_dim / spec.head_dim)
        if spec.temperature is not None:
            floor_scale = max(float(_SHORTEST), spec.temperature.floor_scale * float(self.factors.length))
            fields["temperature"] = changed(
                spec.temperature, floor_scale=min(spec.temperature.floor_scale, floor_scale)
            )
        position = self._position(spec.position, Fraction(head_dim, spec.head_dim))
        return changed(spec, **fields, mask=self._mask(spec.mask), position=position)

    def _latent(self, spec: LatentSpec) -> LatentSpec:
        heads = _fewer(spec.num_heads, self.factors.width)
        per_head = min(Fraction(1), self.factors.width * spec.num_heads / heads)
        ranks = {
            name: _width(rank, self.ratio) for name in ("q_lora_rank", "kv_lora_rank") if (rank := getattr(spec, name))
        }
        names = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        dims = {name: _width(getattr(spec, name), per_head) for name in names}
        position = self._position(spec.position, Fraction(1))
        shrunk = changed(spec, num_heads=heads, **ranks, **dims, mask=self._mask(spec.mask), position=position)
        return shrunk.miniature(self._shrink())

    def _mask(self, mask: Mask) -> Mask:
        if isinstance(mask, GridWindowMask):  # the grid shrinks with the width; windows stay of whole folds of two
            return changed(mask, size=min(mask.size, 2 * max(1, round(mask.size * self.factors.width / 2))))
        size = _local_size(mask)
        return changed(mask, size=self.factors.length_of(size)) if size else mask

    def _position(self, position: Position, head_ratio: Fraction) -> Position:
        if not isinstance(position, Rope):
            return position
        scaling = position.scaling
        if isinstance(scaling, Llama3Scaling | YarnScaling):
            length = self.factors.length_of(scaling.original_max_seq_len)
            scaling = changed(scaling, original_max_seq_len=length)
        rotary = position.rotary_dim and max(2, 2 * round(position.rotary_dim * head_ratio / 2))
        sections = position.sections and _shrunk_sections(position.sections, head_ratio, rotary)
        return changed(position, scaling=scaling, rotary_dim=rotary, sections=sections)


def _shrunk_sections(sections: ImageSections, ratio: Fraction, rotary: int | None) -> ImageSections:
    """Fewer pairs by row and column, all others by time."""
    pairs = rotary // 2 if rotary else round(sections.num_pairs * ratio)
    row, column = (size * pairs // sections.num_pairs for size in (sections.row, sections.column))
    return changed(sections, time=pairs - row - column, row=row, column=column)


def _scaled_softmax(scale: float, times: float) -> float:
    """The scale of queries whose heads are `times` as wide: 1 / sqrt(n) of a whole n stays one (Gemma's config).

    A scale of 1 is for heads that are normed, whatever their width.
    """
    if scale == 1:
        return scale
    inverse = scale**-2
    is_whole = math.isclose(inverse, round(inverse), rel_tol=1e-9)
    return float((round(inverse * times) if is_whole else inverse * times) ** -0.5)


def _scaled_text(text: TextSpec, factors: _Factors) -> TextSpec:
    hidden = _hidden_size(text, factors.width)
    scale = text.embedding_scale and text.embedding_scale * math.sqrt(hidden / text.hidden_size)
    return changed(
        text,
        **_scaled_stack(text, factors, hidden),
        vocab_size=min(text.vocab_size, max(_SMALLEST_VOCAB, _width(text.vocab_size, factors.width))),
        max_seq_len=min(text.max_seq_len, max(_SHORTEST_CONTEXT, round(text.max_seq_len * factors.length))),
        embedding_scale=scale,
    )


def _scaled_vision(vision: VisionSpec, factors: _Factors, text_width: int) -> VisionSpec:
    fold, tower = vision.adapter.fold, vision.tower
    grid = min(vision.grid, fold * max(2, round(vision.grid * factors.width / fold)))
    stack: dict[str, Any] = _scaled_stack(tower, factors, _hidden_size(tower, factors.width))
    if tower.position_grid is not None:
        stack["position_grid"] = min(tower.position_grid, max(2, round(tower.position_grid * factors.width)))
    folded = (tower.hidden_size * fold**2, int(stack["hidden_size"]) * fold**2)
    deepstack = vision.deepstack and changed(
        vision.deepstack, adapter=_scaled_adapter(vision.deepstack.adapter, factors, folded)
    )
    return changed(
        vision,
        image_size=grid * vision.patch_size,
        tower=changed(tower, **stack),
        adapter=_scaled_adapter(vision.adapter, factors, folded),
        projector=changed(vision.projector, output_size=text_width),
        deepstack=deepstack,
    )


def _scaled_adapter(adapter: S, factors: _Factors, folded: tuple[int, int]) -> S:
    """An adapter of smaller sizes; one that is as wide as its `folded` patches before stays so after."""
    sizes = {name: getattr(adapter, name) for name in ("intermediate_size", "output_size") if hasattr(adapter, name)}
    before, after = folded
    keeps = "intermediate_size" not in sizes
    scaled = {n: after if keeps and size == before else _width(size, factors.width) for n, size in sizes.items()}
    return changed(adapter, **scaled)


def _with_tower(vision: VisionSpec, tower: TowerSpec, most: int = MAX_LAYERS) -> VisionSpec:
    """Another tower; outputs of single blocks from its first ones where those are no more, and `most` at most."""
    if vision.deepstack is None:
        return changed(vision, tower=tower)
    blocks = vision.deepstack.blocks[: min(most, tower.num_layers)]
    blocks = blocks if blocks[-1] < tower.num_layers else tuple(range(len(blocks)))
    return changed(vision, tower=tower, deepstack=changed(vision.deepstack, blocks=blocks))


def _scaled_stack(stack: StackSpec, factors: _Factors, hidden: int) -> dict[str, Any]:
    shrunk = _Shrunk(factors, Fraction(hidden, stack.hidden_size))
    return {"hidden_size": hidden, "parts": {name: shrunk.part(spec) for name, spec in stack.parts.items()}}


def _hidden_size(stack: StackSpec, factor: Fraction) -> int:
    """The stream's new width: that of all query heads where it was so, as some families demand."""
    for spec in stack.parts.values():
        if isinstance(spec, GQASpec) and spec.num_heads * spec.head_dim == stack.hidden_size:
            heads, _, head_dim = _heads(spec.num_heads, spec.num_kv_heads, spec.head_dim, factor)
            return heads * head_dim
    return _width(stack.hidden_size, factor)


def _heads(heads: int, kv_heads: int, head_dim: int, factor: Fraction) -> tuple[int, int, int]:
    """Fewer and narrower heads whose total width is about `factor` times the old one, in the same ratio."""
    fewer = _fewer(kv_heads, factor)
    return heads // kv_heads * fewer, fewer, _width(head_dim, min(Fraction(1), factor * kv_heads / fewer))


def _fewer(count: int, factor: Fraction) -> int:
    """A number of heads that takes its share of the shrinkage, and leaves at least two."""
    return min(count, max(2, math.ceil(count * math.sqrt(factor))))


def _width(size: int, ratio: Fraction) -> int:
    """A multiple of 8 near `size * ratio`, at least 8, never above `size`."""
    return min(size, max(_MULTIPLE, _MULTIPLE * round(size * ratio / _MULTIPLE)))


def _local_size(mask: Mask | None) -> int | None:
    return mask.size if isinstance(mask, ChunkedMask | SlidingWindowMask) else None


def _laid_once(layers: Iterable[GroupSpec | BlockSpec]) -> tuple[GroupSpec | BlockSpec, ...]:
    """Each pattern once, and of blocks in a row at most two."""
    return tuple(changed(item, repeat=1 if isinstance(item, GroupSpec) else min(item.repeat, 2)) for item in layers)


def _first_blocks(layers: Iterable[GroupSpec | BlockSpec], count: int) -> Iterator[BlockSpec]:
    """The first `count` blocks as laid out, equal neighbours together."""
    for item in layers:
        for block in _opened(item):
            taken = min(block.repeat, count)
            if taken:
                yield changed(block, repeat=taken)
            count -= taken


def _opened(item: GroupSpec | BlockSpec) -> Iterator[BlockSpec]:
    if isinstance(item, BlockSpec):
        yield item
        return
    for _ in range(item.repeat):
        yield from item.blocks


def _with_layers(stack: S, layers: tuple[GroupSpec | BlockSpec, ...]) -> S:
    """Other blocks, and of the parts those that they use."""
    assert isinstance(stack, StackSpec)
    used = {name for item in layers for block in _opened(item) for name in block.part_names()}
    mtp = getattr(stack, "mtp", None)
    if mtp is not None:
        used |= set(mtp.block.part_names())
    parts = {name: spec for name, spec in stack.parts.items() if name in used}
    return changed(stack, layers=layers, parts=parts)


def _derived(
    spec: ModelSpec, text: TextSpec, vision: VisionSpec | None, scale: Scale, num_layers: int | None
) -> ModelSpec:
    suffix = ("" if scale == 1 else f" {scale}") + ("" if num_layers is None else f" {num_layers}L")
    dropped: dict[str, Any] = {"extends": None, "sources": (), "estimated": (), "claims": (), "description": None}
    dropped["about"] = None
    origin = spec.huggingface and changed(spec.huggingface, fields={})
    name = spec.name[: 120 - len(suffix)] + suffix
    return changed(spec, name=name, text=text, vision=vision, huggingface=origin, stored_as=None, **dropped)
