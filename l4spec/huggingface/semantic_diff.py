"""A model's mathematics as a flat table of facts: equal tables mean equal mathematics, whatever parts are named."""

import math
from collections.abc import Iterator
from typing import Any

from l4spec.layers.attention.positions import Rope
from l4spec.layers.base import LayerSpec
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.resolve import ResolvedModel, ResolvedMTP, ResolvedStack

_REL_TOLERANCE = 1e-12
"""Room for the last digits of a square root."""


def differences(left: ResolvedModel, right: ResolvedModel) -> list[tuple[str, Any, Any]]:
    """(path, left, right) of every difference between two models; None for a value that one side lacks."""
    facts, others = dict(_facts(left)), dict(_facts(right))
    paths = dict.fromkeys((*facts, *others))
    return [
        (path, facts.get(path), others.get(path)) for path in paths if not _equal(facts.get(path), others.get(path))
    ]


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, float) or isinstance(right, float):
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        return numbers and math.isclose(left, right, rel_tol=_REL_TOLERANCE)
    return bool(left == right)


def _facts(model: ResolvedModel) -> Iterator[tuple[str, Any]]:
    text, vision = model.text, model.vision
    yield from _flat("text", text.embedding.model_dump())
    yield from _flat("text.head", text.head.model_dump())
    yield "text.dtype", text.dtype
    yield "text.final_norm", text.final_norm
    yield "text.learned_positions", text.position is not None
    yield "text.max_seq_len", text.stack.width.max_seq_len
    yield from _stack("text", text.stack)
    yield from _modules(text.mtp)
    yield "vision", vision is not None
    if vision is not None:
        free = {"image_size"} if vision.takes_any_grid else None  # which plans count, and no config names
        yield from _flat("vision", vision.patch_embedding.model_dump(exclude=free))
        yield from _flat("vision.adapter", vision.adapter.model_dump())
        yield from _flat("vision.projector", vision.projector.model_dump())
        yield "vision.tower.learned_positions", vision.position is not None
        if vision.takes_any_grid and vision.position is not None:
            yield "vision.tower.position_grid", math.isqrt(vision.position.num_positions)
        yield from _flat("vision.deepstack", vision.deepstack and vision.deepstack.model_dump())
        yield "vision.tower.pre_layernorm", vision.pre_layernorm
        yield "vision.tower.post_layernorm", vision.post_layernorm
        yield from _stack("vision.tower", vision.stack)


def _modules(mtp: ResolvedMTP | None) -> Iterator[tuple[str, Any]]:
    """Of multi-token prediction."""
    yield "text.mtp", mtp is not None
    if mtp is not None:
        yield "text.mtp.num_modules", mtp.num_modules
        yield "text.mtp.embedding", "copy" if mtp.copies_embedding else "shared"
        yield "text.mtp.head", "copy" if mtp.copies_head else "shared"
        yield "text.mtp.block.form", mtp.block.form
        for slot, part in mtp.block.parts:
            yield from _flat(f"text.mtp.block.{slot}", _normal(part.spec))


def _stack(path: str, stack: ResolvedStack) -> Iterator[tuple[str, Any]]:
    yield f"{path}.hidden_size", stack.width.hidden_size
    yield f"{path}.num_layers", len(stack.blocks)
    yield from _flat(f"{path}.norm", stack.norm.model_dump())
    known: dict[LayerSpec, dict[str, Any]] = {}
    for block in stack.blocks:
        yield f"{path}.layers[{block.index}].form", block.form
        yield f"{path}.layers[{block.index}].output_scale", block.output_scale
        for slot, part in block.parts:
            if part.spec not in known:
                known[part.spec] = dict(_flat("", _normal(part.spec)))
            yield from ((f"{path}.layers[{block.index}].{slot}{name}", v) for name, v in known[part.spec].items())


def _normal(spec: LayerSpec) -> dict[str, Any]:
    """The fields of a layer, with derived values filled in and fields without effect left out."""
    fields = spec.model_dump()
    if isinstance(spec, GQASpec):
        fields["scale"] = spec.scale or spec.head_dim**-0.5
        if isinstance(spec.position, Rope):
            fields["position"]["rotary_dim"] = spec.position.rotary_dim or spec.head_dim
    if isinstance(spec, MoESpec):
        fields["shared_size"] = spec.shared_size
        del fields["balance"]  # of training alone
        del fields["shared_intermediate_size"], fields["num_shared_experts"]
        if spec.router.num_groups == 1:
            del fields["router"]["group_score"], fields["router"]["num_limited_groups"]
    return fields


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}", inner)
    elif value is not None:
        yield path, value
