"""Effect of estimated fields: the numbers of a plan that depend on unpublished values."""

from typing import Literal, NamedTuple

from l4spec.layers.attention.positions import Rope
from l4spec.layers.base import LayerSpec
from l4spec.spec.model import ModelSpec, StackSpec

Effect = Literal["none", "work", "sizes"]
"""`sizes`: may change tensors, so every number. `work`: may change FLOPs, cache, memory and time, but no parameter."""

_VALUES_ONLY = frozenset(
    ("eps", "temperature", "scale", "embedding_scale", "activation", "name", "description", "sources", "claims")
)
"""Fields that change what a model computes with the same tensors, operations and caches."""
_ROUTING_ONLY = frozenset(
    ("score", "scales", "renormalize", "scaling_factor", "num_groups", "num_limited_groups", "group_score")
)
"""Router fields that change the choice of experts and the weights of their outputs, but no size or count."""
_WORK_ONLY = frozenset(("mask", "logit_softcap", "capacity_factor", "max_tiles", "global_tile", "dtype", "stored_as"))
_ROTATION = frozenset(("theta", "layout", "scaling"))


class EstimatedFields(NamedTuple):
    """Estimated fields by the numbers that depend on them: `params` for parameter counts, `work` for any number.

    Estimated fields in neither change no number of a plan.
    """

    params: tuple[str, ...]
    work: tuple[str, ...]


def estimates_of(spec: ModelSpec) -> EstimatedFields:
    """The spec's estimated fields by their effect; a field that is not known to be harmless counts as a size."""
    effects = {path: effect_of(spec, path) for path in spec.estimated}
    return EstimatedFields(
        params=tuple(path for path, effect in effects.items() if effect == "sizes"),
        work=tuple(path for path, effect in effects.items() if effect != "none"),
    )


def effect_of(spec: ModelSpec, path: str) -> Effect:
    """The part of a plan that depends on the field at `path` (written as in `estimated`)."""
    if path.split(".", maxsplit=1)[0] == "about":
        return "none"
    stack, part, steps = _within(spec, path.split("."))
    for step in steps:
        if step in _VALUES_ONLY or step in _ROUTING_ONLY:
            return "none"
        if step in _WORK_ONLY:
            return "work"
        if step == "max_seq_len":
            return "sizes" if spec.text.learned_positions else "work"
        if step == "position":
            return _effect_of_position(stack, steps)
        if step == "qk_norm":
            return _effect_of_qk_norm(part, steps)
    return "sizes"


def _within(spec: ModelSpec, steps: list[str]) -> tuple[StackSpec, LayerSpec | None, list[str]]:
    """The stack and the part that a path leads into, and its steps below: an author's own names are no fields."""
    stack: StackSpec = spec.vision.tower if steps[0] == "vision" and spec.vision is not None else spec.text
    below = steps[2:] if steps[:2] == ["vision", "tower"] else steps[1:]
    if below[:1] == ["parts"] and len(below) > 1:
        return stack, stack.parts.get(below[1]), below[2:]
    return stack, None, below or steps


def _effect_of_position(stack: StackSpec, steps: list[str]) -> Effect:
    """Frequencies change no size; but an engine keeps a table for each distinct rotation."""
    rotations = sum(isinstance(getattr(part, "position", None), Rope) for part in stack.parts.values())
    only_frequencies = bool(_ROTATION.intersection(steps))
    return "none" if only_frequencies and rotations <= 1 else "work"


def _effect_of_qk_norm(part: LayerSpec | None, steps: list[str]) -> Effect:
    """A weightless norm has no tensor, and the absence of a weight is known from the parameter count."""
    norm = getattr(part, "qk_norm", None)
    return "none" if part is not None and (norm is None or norm.kind == "l2" or "eps" in steps) else "sizes"


__all__ = ["Effect", "EstimatedFields", "effect_of", "estimates_of"]
