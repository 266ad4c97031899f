"""Rotary positions in Hugging Face configs, both ways, in the old spelling and the one of transformers 5."""

from typing import Any, Literal

from l4spec.huggingface.fields import Fields
from l4spec.layers.attention.positions import (
    LinearScaling,
    Llama3Scaling,
    ProportionalScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from l4spec.layers.base import Spec
from l4spec.spec.origin import RopeStyle

Layout = Literal["interleaved", "half"]
_NAMES = {"original_max_seq_len": "original_max_position_embeddings", "share": "partial_rotary_factor"}
_ZERO_IS_UNSET = ("mscale", "mscale_all_dim")
"""transformers tests these for truth: `if mscale and mscale_all_dim` (modeling_rope_utils.py)."""
_SCALINGS: dict[str, type[Spec]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "proportional": ProportionalScaling,
}


def read_rope(fields: Fields, layout: Layout, *, head_dim: int | None = None, partial: float = 1.0) -> dict[str, Any]:
    """The `position` of a spec from `rope_parameters`, or from `rope_theta` and `rope_scaling`.

    `partial`: default of the rotated share of a head of `head_dim`; without `head_dim` the whole head is rotated.
    """
    parameters, scaling = fields.mapping("rope_parameters"), fields.mapping("rope_scaling")
    if parameters and scaling and parameters.data and scaling.data and parameters.data != scaling.data:
        fields.problem("rope_scaling", "says something else than rope_parameters")
    source = scaling if scaling and scaling.data else parameters
    position: dict[str, Any] = {"kind": "rope", "theta": _theta(fields, source), "layout": layout}
    turned = None if _is_proportional(source) else _turned(fields, source, head_dim, partial)
    if turned is not None:
        position["rotary_dim"] = turned
    if source is not None:
        _keep_sections(fields, source)
        rope_scaling = _read_scaling(fields, source)
        source.finish((), {})
        if rope_scaling:
            position["scaling"] = rope_scaling
    return position


def rope_style(fields: Fields) -> RopeStyle:
    """Form of rotary positions in this config."""
    if isinstance(fields.data.get("rope_parameters"), dict):
        return "rope_parameters"
    scaling = fields.data.get("rope_scaling")
    old = isinstance(scaling, dict) and "type" in scaling and "rope_type" not in scaling
    return "rope_scaling_type" if old else "rope_scaling"


def write_rope(rope: Rope, style: RopeStyle, head_dim: int | None = None, partial: float = 1.0) -> dict[str, Any]:
    """The equivalent config fields; every scaling has a form.

    The share of a head of `head_dim` that is turned is written where it is not `partial`, the family's own.
    """
    scaling = None if rope.scaling is None else _write_scaling(rope.scaling, style)
    share = 1.0 if head_dim is None or rope.rotary_dim is None else rope.rotary_dim / head_dim
    turned = {} if share == partial else {"partial_rotary_factor": share}
    if style == "rope_parameters":
        return {"rope_parameters": {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"}), **turned}}
    return {"rope_theta": rope.theta, "rope_scaling": scaling, **turned}


def _keep_sections(fields: Fields, source: Fields) -> None:
    """Sections of a head rotated by time, row and column of an image: for text, all three are the same position."""
    if source.has("mrope_section"):
        source.read.update(("mrope_section", "mrope_interleaved"))
        fields.carry("rope_scaling", "rope_parameters")


def _is_proportional(source: Fields | None) -> bool:
    """True if the rotated share of a head counts frequencies: then all of the head is in pairs."""
    return source is not None and source.data.get("rope_type") == "proportional"


def _turned(fields: Fields, source: Fields | None, head_dim: int | None, partial: float) -> int | None:
    """Elements of a head that are turned, from a share or a number; None for the whole head."""
    share = partial
    for holder in (fields, source):
        if holder is not None and holder.has("partial_rotary_factor"):
            share = holder.number("partial_rotary_factor")
    if head_dim is None:
        for holder in (fields, source):
            if holder is not None and holder.has("partial_rotary_factor"):
                holder.expect("partial_rotary_factor", 1.0, 1)
        return None
    turned = int(head_dim * share)
    if fields.has("rotary_dim"):
        turned = fields.size("rotary_dim")
        if share not in (1.0, turned / head_dim):
            fields.consequence("rotary_dim", f"expected partial_rotary_factor times head_dim ({int(head_dim * share)})")
    return None if turned == head_dim else turned


def _theta(fields: Fields, source: Fields | None) -> float:
    inner = source.number("rope_theta") if source and source.has("rope_theta") else None
    outer = fields.number("rope_theta") if inner is None or fields.has("rope_theta") else inner
    if inner is not None and outer != inner:
        fields.problem("rope_theta", f"says {outer}, but the rope parameters say {inner}")
    if source is not None:
        source.read.add("rope_theta")
    return _whole(outer if inner is None else inner)


def _read_scaling(fields: Fields, source: Fields) -> dict[str, Any] | None:
    kind = source.data.get("rope_type", source.data.get("type", "default"))
    source.read.update(("rope_type", "type"))
    if "type" in source.data and source.data["type"] != kind:
        source.problem("type", f"says something else than rope_type ({kind!r})")
    if kind in ("default", "mrope"):
        return None
    if not isinstance(kind, str) or kind not in _SCALINGS:
        known = ", ".join(("default", *_SCALINGS))
        source.problem(
            "rope_type", f"unknown rope type {kind!r:.60}, which would change the mathematics", f"one of: {known}"
        )
        return None
    source.defaults = {"original_max_position_embeddings": fields.data.get("max_position_embeddings")}
    return {"kind": kind, **_read_numbers(source, kind)}


def _read_numbers(source: Fields, kind: str) -> dict[str, Any]:
    if kind == "yarn" and "attention_factor" in source.data:
        source.expect("attention_factor", None)
    numbers: dict[str, Any] = {}
    for name, info in _SCALINGS[kind].model_fields.items():
        spelling = _NAMES.get(name, name)
        if name == "kind":
            continue
        if name == "original_max_seq_len":
            numbers[name] = source.size(spelling)
        elif name == "truncate":
            if source.has(name) and not source.flag(name):
                numbers[name] = False
        elif name in _ZERO_IS_UNSET and source.data.get(spelling) in (0, None):
            pass
        elif info.is_required() or source.has(spelling):
            numbers[name] = _whole(source.number(spelling))
        source.read.add(spelling)
    return numbers


def _write_scaling(scaling: RopeScaling, style: RopeStyle) -> dict[str, Any]:
    values = scaling.model_dump(exclude={"kind"}, exclude_none=True, exclude_unset=True)
    kind = "type" if style == "rope_scaling_type" else "rope_type"
    return {kind: scaling.kind, **{_NAMES.get(name, name): value for name, value in values.items()}}


def _whole(value: float) -> float:
    """500000.0 as 500000: the same number, read more easily."""
    return int(value) if float(value).is_integer() else value
