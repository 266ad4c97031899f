"""The vision tower of Qwen3-VL and Qwen3.5, and the sections of their text's rotation, in configs.

Images of any sides are cut into patches of two equal frames. Learned positions are a square grid that is interpolated;
a spec counts images of the size whose patches are that grid, since a config names no size.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from l4spec.errors import Problem, SpecError
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.multimodal import Tower
from l4spec.layers.attention.positions import ImageSections, Rope, Rope2d
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.mlp.spec import MLPSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

Data = dict[str, Any]
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
EPS = 1e-6
THETA = 10000.0
_DEFAULTS: Mapping[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "rope_theta": THETA,
}


def qwen_tower(
    model_types: tuple[str, ...], *, deepstack: tuple[int, ...] | None, sections: tuple[int, int, int]
) -> Tower:
    """The tower of a family, by the `model_type` that its configs give it, the first where it is written.

    `deepstack` is the default of the blocks whose outputs the text gets too (None: never), `sections` that of the pairs
    rotated by time, row and column.
    """

    def read(fields: Fields, text_width: int) -> Data:
        return _read(fields, text_width, model_types, deepstack)

    def write(model: ResolvedModel, style: RopeStyle) -> Data:
        return {"model_type": model_types[0], **_write(model, style, with_deepstack=deepstack is not None)}

    def sections_of(text: Fields, section: Data) -> None:
        read_sections(text, section, sections, interleaved=True)

    return Tower(read, write, sections_of, write_sections, NAMES, joined(_VISUAL), CONVOLUTIONS)


def _read(fields: Fields, text_width: int, model_types: tuple[str, ...], deepstack: tuple[int, ...] | None) -> Data:
    fields.defaults = {**_DEFAULTS, "deepstack_visual_indexes": list(deepstack or ())}
    fields.expect("model_type", *model_types) if fields.has("model_type") else fields.read.add("model_type")
    fields.carry("initializer_range", "dtype", "torch_dtype")
    hidden, fold, side = fields.size("hidden_size"), fields.size("spatial_merge_size"), _grid(fields)
    meet_text(fields, text_width)
    fields.expect("hidden_act", *_ACTIVATIONS)
    adapter = merger(hidden, fold)
    patch = fields.size("patch_size")
    mlp = {"kind": "mlp", "intermediate_size": fields.size("intermediate_size")}
    activation = _ACTIVATIONS.get(str(fields.raw("hidden_act")), "gelu")
    blocks = _deepstack(fields, deepstack is not None)
    return {
        "image_size": patch * fold * max(1, side // fold),
        "patch_size": patch,
        "num_channels": fields.size("in_channels"),
        "temporal_patch_size": fields.size("temporal_patch_size"),
        "tower": {
            "hidden_size": hidden,
            "norm": {"kind": "layernorm", "eps": EPS},
            "learned_positions": True,
            "position_grid": side,
            "patch_bias": True,
            "post_layernorm": False,
            "parts": {"attention": read_attention(fields, hidden), "mlp": {**mlp, "activation": activation}},
            "layers": [{"attention": "attention", "ffn": "mlp", "repeat": fields.size("depth")}],
        },
        "adapter": adapter,
        "projector": {"kind": "linear", "output_size": text_width, "bias": True},
        **({"deepstack": {"blocks": blocks, "adapter": {**adapter, "norms": "folded"}}} if blocks else {}),
    }


def _grid(fields: Fields) -> int:
    """The side of the grid of learned positions."""
    number = fields.size("num_position_embeddings")
    side = isqrt(number)
    if side**2 != number:
        fields.problem("num_position_embeddings", f"expected a square number, found {number}")
    return side


def _deepstack(fields: Fields, may_have: bool) -> list[int]:
    if not may_have:
        fields.carry("deepstack_visual_indexes")
        if fields.data.get("deepstack_visual_indexes"):
            fields.problem("deepstack_visual_indexes", "expected none, for the family's text has no place for them")
        return []
    blocks, depth = fields.integers("deepstack_visual_indexes") or [], fields.size("depth")
    if blocks != sorted(set(blocks)) or (blocks and blocks[-1] >= depth):
        fields.problem("deepstack_visual_indexes", f"expected ascending blocks from 0 to {depth - 1}, found {blocks}")
        return []
    return blocks


def meet_text(fields: Fields, text_width: int) -> None:
    """Refuse a tower whose vectors are not as wide as the text's."""
    if (out := fields.size("out_hidden_size")) != text_width:
        fields.consequence("out_hidden_size", f"expected the text's hidden_size ({text_width}), found {out}")


def merger(hidden: int, fold: int) -> Data:
    """The adapter of Qwen's towers, whose first layer keeps the width of folded patches."""
    return {"kind": "patch_merger", "spatial_merge_size": fold, "output_size": hidden * fold**2, "eps": EPS}


def read_attention(fields: Fields, hidden: int) -> Data:
    """Attention of a tower over all patches of an image, turned by row and column."""
    heads = fields.size("num_heads")
    parameters = fields.mapping("rope_parameters")
    theta = THETA
    if parameters is not None and parameters.data:
        parameters.defaults = {"rope_theta": THETA}
        parameters.expect("rope_type", "axial", "default") if parameters.has("rope_type") else None
        theta = parameters.number("rope_theta")
        parameters.finish((), {})
    if hidden % (4 * heads):
        fields.consequence("num_heads", f"expected heads of a multiple of 4 elements, found {hidden} / {heads}")
    return {
        "kind": "gqa",
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": max(hidden // heads // 4 * 4, 4),
        "qkv_bias": True,
        "output_bias": True,
        "mask": {"kind": "none"},
        "position": {"kind": "rope_2d", "theta": theta, "layout": "half", "first": "row"},
    }


def read_sections(text: Fields, section: Data, usual: tuple[int, int, int], *, interleaved: bool) -> None:
    """Give the rotation of every attention layer its sections, as transformers lays them over the rotated pairs.

    `interleaved`: the axes alternate, each up to its number, instead of following each other.
    """
    names = (name for name in ("rope_parameters", "rope_scaling") if _says_sections(text, name))
    source: Data = next((text.data[name] for name in names), {})
    for name in ("rope_parameters", "rope_scaling"):
        text.carried.pop(name, None)  # which `write_sections` writes
    given = source.get("mrope_section", list(usual))
    if not isinstance(given, list) or len(given) != 3 or not all(isinstance(n, int) and n >= 0 for n in given):
        text.problem("rope_scaling", f"expected an mrope_section of three numbers, found {given!r:.60}")
        return
    if source.get("mrope_interleaved", interleaved) is not interleaved:
        always = str(interleaved).lower()
        text.problem("rope_scaling", f"expected mrope_interleaved {always}, which the family always does")
    for part in section["text"]["parts"].values():
        position = part.get("position", {})
        if position.get("kind") == "rope":
            pairs = (position.get("rotary_dim") or part["head_dim"]) // 2
            row, column = given[1:]
            if interleaved:
                row, column = (len(range(axis, min(3 * given[axis], pairs), 3)) for axis in (1, 2))
            elif sum(given) != pairs:
                text.problem("rope_scaling", f"expected an mrope_section of {pairs} pairs together, found {given}")
                return
            numbers = {"time": pairs - row - column, "row": row, "column": column}
            position["sections"] = {**numbers, "interleaved": interleaved}


def _says_sections(text: Fields, name: str) -> bool:
    value = text.data.get(name)
    return isinstance(value, dict) and ("mrope_section" in value or "mrope_interleaved" in value)


def _write(model: ResolvedModel, style: RopeStyle, *, with_deepstack: bool) -> Data:
    vision = model.vision
    assert vision is not None
    specs = [part.spec for block in vision.stack.blocks for _, part in block.parts]
    attention = next((spec for spec in specs if isinstance(spec, GQASpec)), None)
    mlp = next((spec for spec in specs if isinstance(spec, MLPSpec)), None)
    if attention is None or mlp is None or vision.position is None or not isinstance(attention.position, Rope2d):
        message = "expected blocks of attention by rope_2d and mlp, with learned positions"
        raise SpecError([Problem(message, path="vision.tower.parts")])
    theta, acts = attention.position.theta, {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "depth": len(vision.stack.blocks),
        "hidden_size": vision.stack.width.hidden_size,
        "hidden_act": acts.get(mlp.activation, mlp.activation),
        "intermediate_size": mlp.intermediate_size,
        "num_heads": attention.num_heads,
        "in_channels": vision.patch_embedding.num_channels,
        "patch_size": vision.patch_embedding.patch_size,
        "temporal_patch_size": vision.patch_embedding.temporal_patch_size,
        "spatial_merge_size": vision.adapter.fold,
        "out_hidden_size": vision.projector.output_size,
        "num_position_embeddings": vision.position.num_positions,
        **({} if theta == THETA else {"rope_parameters": {"rope_theta": theta, "rope_type": "axial"}}),
        **(
            {"deepstack_visual_indexes": list(vision.deepstack.blocks if vision.deepstack else ())}
            if with_deepstack
            else {}
        ),
    }


def write_sections(model: ResolvedModel, text: Data) -> Data:
    """The text's fields with the sections of its rotation beside the other rope parameters."""
    specs = (part.spec for block in model.text.stack.blocks for _, part in block.parts)
    ropes = (spec.position for spec in specs if isinstance(spec, GQASpec) and isinstance(spec.position, Rope))
    sections: ImageSections | None = next((rope.sections for rope in ropes), None)
    if sections is None:
        return text
    name = "rope_parameters" if "rope_parameters" in text else "rope_scaling"
    numbers = [sections.time, sections.row, sections.column]
    usual = {} if text.get(name) else {"rope_type": "default"}
    more = {"mrope_section": numbers, **({"mrope_interleaved": True} if sections.interleaved else {})}
    return {**text, name: {**usual, **(text.get(name) or {}), **more}}


_VISUAL = "model.visual."


def common_names(root: str) -> dict[str, str]:
    """The names below `root` that Qwen's towers share."""
    return {
        "vision.patch_embedding.": f"{root}patch_embed.",
        "vision.layers.#.attention_norm.": f"{root}blocks.#.norm1.",
        "vision.layers.#.attention.o_proj.": f"{root}blocks.#.attn.proj.",
        "vision.layers.#.ffn_norm.": f"{root}blocks.#.norm2.",
    }


def joined(root: str) -> Mapping[str, tuple[str, ...]]:
    """Their joined tensors."""
    return {
        f"{root}blocks.#.attn.qkv.{kind}": tuple(f"vision.layers.#.attention.{name}_proj.{kind}" for name in "qkv")
        for kind in ("weight", "bias")
    }


NAMES: Mapping[str, str] = {
    **common_names(_VISUAL),
    "vision.position.": f"{_VISUAL}pos_embed.",
    "vision.layers.#.ffn.up_proj.": f"{_VISUAL}blocks.#.mlp.linear_fc1.",
    "vision.layers.#.ffn.down_proj.": f"{_VISUAL}blocks.#.mlp.linear_fc2.",
    "vision.adapter.norm.": f"{_VISUAL}merger.norm.",
    "vision.adapter.fc.": f"{_VISUAL}merger.linear_fc1.",
    "vision.projector.proj.": f"{_VISUAL}merger.linear_fc2.",
    "vision.deepstack.layers.#.adapter.norm.": f"{_VISUAL}deepstack_merger_list.#.norm.",
    "vision.deepstack.layers.#.adapter.fc.": f"{_VISUAL}deepstack_merger_list.#.linear_fc1.",
    "vision.deepstack.layers.#.projector.proj.": f"{_VISUAL}deepstack_merger_list.#.linear_fc2.",
}
CONVOLUTIONS = ("vision.patch_embedding.proj.weight",)
