"""The vision tower of Qwen2.5-VL in configs: attention in windows of the grid of patches, in some blocks in all of it.

It has no learned positions, so that no field of a config names a size of images: plans count those of `USUAL_SIZE`.
"""

from collections.abc import Mapping
from typing import Any

from l4spec.errors import Problem, SpecError
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.multimodal import Tower
from l4spec.huggingface.qwen_tower import (
    CONVOLUTIONS,
    EPS,
    THETA,
    common_names,
    joined,
    meet_text,
    merger,
    read_attention,
    read_sections,
    write_sections,
)
from l4spec.huggingface.text import block, write_blocks
from l4spec.layers.attention.masks import GridWindowMask
from l4spec.layers.attention.positions import Rope2d
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

Data = dict[str, Any]
USUAL_SIZE = 896
"""Sides in pixels, near this, of the image that plans count: 8 x 8 windows of 112 pixels, 1,024 tokens."""
DEFAULTS: Mapping[str, Any] = {
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "rope_theta": THETA,
}
_SECTIONS = (16, 24, 24)


def window_tower(model_types: tuple[str, ...]) -> Tower:
    """The tower of a family, by the `model_type` that its configs give it, the first where it is written."""

    def read(fields: Fields, text_width: int) -> Data:
        fields.expect("model_type", *model_types) if fields.has("model_type") else fields.read.add("model_type")
        return _read(fields, text_width)

    def write(model: ResolvedModel, style: RopeStyle) -> Data:
        return {"model_type": model_types[0], **_write(model)}

    def sections_of(text: Fields, section: Data) -> None:
        read_sections(text, section, _SECTIONS, interleaved=False)

    return Tower(read, write, sections_of, write_sections, _NAMES, joined(_VISUAL), CONVOLUTIONS, beside_text=True)


def _read(fields: Fields, text_width: int) -> Data:
    fields.defaults = DEFAULTS
    fields.carry("initializer_range", "dtype", "torch_dtype", "tokens_per_second", "spatial_patch_size")
    hidden, fold, patch = fields.size("hidden_size"), fields.size("spatial_merge_size"), fields.size("patch_size")
    meet_text(fields, text_width)
    fields.expect("hidden_act", "silu")
    window = fold * _window(fields, fold, patch)
    attention = read_attention(fields, hidden)
    side = window * patch
    parts = {
        "window": {**attention, "mask": {"kind": "grid_window", "size": window}},
        "full": attention,
        "ffn": {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size"), "bias": True},
    }
    depth = fields.size("depth")
    whole = fields.integers("fullatt_block_indexes") or []
    blocks = [block("full" if index in whole else "window", "ffn") for index in range(depth)]
    used = {name for one in blocks for _, name in one}
    return {
        "image_size": side * max(1, USUAL_SIZE // side),
        "patch_size": patch,
        "num_channels": _channels(fields),
        "temporal_patch_size": fields.size("temporal_patch_size"),
        "tower": {
            "hidden_size": hidden,
            "norm": {"kind": "rmsnorm", "eps": EPS},
            "post_layernorm": False,
            "parts": {name: part for name, part in parts.items() if name in used},
            "layers": write_blocks(blocks),
        },
        "adapter": {**merger(hidden, fold), "norm": "rmsnorm"},
        "projector": {"kind": "linear", "output_size": text_width, "bias": True},
    }


def _window(fields: Fields, fold: int, patch: int) -> int:
    """Folded patches along one side of a window, as transformers rounds them."""
    pixels = fields.size("window_size")
    if (number := pixels // fold // patch) < 1:
        fields.consequence("window_size", f"expected at least a folded patch ({fold * patch} pixels), found {pixels}")
    return max(1, number)


def _channels(fields: Fields) -> int:
    """Colour channels; published configs call them `in_chans` too, which transformers does not read."""
    channels = fields.size("in_channels")
    if fields.has("in_chans"):
        fields.expect("in_chans", channels)
    fields.carry("in_chans")
    return channels


def _write(model: ResolvedModel) -> Data:
    vision = model.vision
    assert vision is not None
    specs = [part.spec for item in vision.stack.blocks for _, part in item.parts]
    attentions = [spec for spec in specs if isinstance(spec, GQASpec)]
    swiglu = next((spec for spec in specs if isinstance(spec, SwiGLUSpec)), None)
    position = attentions[0].position if attentions else None
    if swiglu is None or not isinstance(position, Rope2d) or vision.position is not None:
        message = "expected blocks of attention by rope_2d and swiglu, without learned positions"
        raise SpecError([Problem(message, path="vision.tower.parts")])
    patch = vision.patch_embedding.patch_size
    parameters = {"rope_theta": position.theta, "rope_type": "axial"}
    turned = {} if position.theta == THETA else {"rope_parameters": parameters}
    windows = {spec.mask.size * patch for spec in attentions if isinstance(spec.mask, GridWindowMask)}
    return {
        "depth": len(vision.stack.blocks),
        "hidden_size": vision.stack.width.hidden_size,
        "hidden_act": "silu",
        "intermediate_size": swiglu.intermediate_size,
        "num_heads": attentions[0].num_heads,
        "in_channels": vision.patch_embedding.num_channels,
        "patch_size": patch,
        "temporal_patch_size": vision.patch_embedding.temporal_patch_size,
        "spatial_merge_size": vision.adapter.fold,
        "out_hidden_size": vision.projector.output_size,
        "window_size": max(windows, default=DEFAULTS["window_size"]),
        "fullatt_block_indexes": [i for i, spec in enumerate(attentions) if not isinstance(spec.mask, GridWindowMask)],
        **turned,
    }


_VISUAL = "visual."
_NAMES: Mapping[str, str] = {
    **common_names(_VISUAL),
    "vision.layers.#.ffn.": f"{_VISUAL}blocks.#.mlp.",
    "vision.adapter.norm.": f"{_VISUAL}merger.ln_q.",
    "vision.adapter.fc.": f"{_VISUAL}merger.mlp.0.",
    "vision.projector.proj.": f"{_VISUAL}merger.mlp.2.",
}
