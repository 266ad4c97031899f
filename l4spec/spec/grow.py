"""Larger models of the same pattern: more and as wide heads, wider feed-forward layers, the pattern laid more often."""

from typing import Any

from l4spec.errors import UserError
from l4spec.layers.base import LayerSpec, changed
from l4spec.spec.model import BlockSpec, GroupSpec, ModelSpec, TextSpec

WIDTHS = ("intermediate_size", "shared_intermediate_size", "q_lora_rank", "kv_lora_rank", "num_heads", "num_kv_heads")
"""Fields of parts that grow with the stream; the width of a head stays, and so do numbers of experts."""


def grow(spec: ModelSpec, *, width: int = 1, depth: int = 1) -> ModelSpec:
    """`spec` with its text `width` times as wide and `depth` times as deep. Raises UserError for factors below 1."""
    if width < 1 or depth < 1:
        raise UserError(f"expected factors of at least 1, found width {width} and depth {depth}")
    text = spec.text
    parts = {name: _wider(part, width) for name, part in text.parts.items()}
    layers = tuple(_deeper(item, depth) for item in text.layers) if depth > 1 else text.layers
    grown = changed(text, hidden_size=text.hidden_size * width, parts=parts, layers=layers)
    return relative(spec, spec.name if width == depth == 1 else f"{spec.name} w{width} d{depth}", grown)


def relative(spec: ModelSpec, name: str, text: TextSpec) -> ModelSpec:
    """The spec with another text part and a matching projector, without the published facts about `spec`.

    Estimated fields of `spec` stay estimated.
    """
    vision = spec.vision
    if vision is not None:
        vision = changed(vision, projector=changed(vision.projector, output_size=text.hidden_size))
    dropped: dict[str, Any] = {"extends": None, "about": None, "claims": (), "huggingface": None}
    return changed(spec, name=name, text=text, vision=vision, **dropped)


def _wider(part: LayerSpec, width: int) -> LayerSpec:
    sizes = {name: value * width for name in WIDTHS if isinstance(value := getattr(part, name, None), int)}
    return changed(part, **sizes)


def _deeper(item: GroupSpec | BlockSpec, depth: int) -> GroupSpec | BlockSpec:
    return changed(item, repeat=item.repeat * depth)
