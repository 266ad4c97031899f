"""From a spec to a Hugging Face config, checked by reading it again."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from l4spec.errors import Problem, SpecError
from l4spec.huggingface.families import FAMILIES
from l4spec.huggingface.family import Family
from l4spec.huggingface.importing import import_config
from l4spec.huggingface.modules import MODULE_COUNTS
from l4spec.huggingface.semantic_diff import differences
from l4spec.spec.model import ModelSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel, resolve
from l4spec.spec.tree import shortened

Data = dict[str, Any]
_MOST_SHOWN = 8
_STORED = ("quantization_config", "compression_config", "quantization")


def export_config(spec: ModelSpec) -> Data:
    """The Hugging Face config of a model: the family it was imported from, or the first one that can express it.

    Equal to the imported config in every field that the family's mathematics reads, in number formats, and in the
    fields without effect that the import carried along; fields that transformers fills in are written out. Raises
    SpecError, naming the properties that the nearest family cannot express, if none fits.
    """
    model = resolve(spec)
    failures: list[_Failure] = []
    for family in _candidates(spec):
        exported = _try(model, spec, family)
        if not isinstance(exported, _Failure):
            return exported
        failures.append(exported)
    nearest = failures[0] if spec.huggingface else min(failures, key=_Failure.distance)
    lead = Problem(f"no Hugging Face family can say this model; {nearest.family.model_type} is nearest, but")
    raise SpecError([lead, *nearest.problems[:_MOST_SHOWN]])


@dataclass(frozen=True, slots=True)
class _Failure:
    """Problems of a model that a family cannot express; `written` if its config expresses a part of it."""

    family: Family
    problems: Sequence[Problem]
    written: bool

    def distance(self) -> tuple[bool, int]:
        """Distance of the family from the model, as a sort key."""
        return not self.written, len(self.problems)


def _try(model: ResolvedModel, spec: ModelSpec, family: Family) -> Data | _Failure:
    """The config of `model`, first in the form of the imported one if fields are redundant."""
    origin = spec.huggingface
    style: RopeStyle = origin.rope_style if origin else "rope_scaling"
    try:
        exported_config = family.write(model, style)
    except SpecError as error:
        return _Failure(family, error.problems, written=False)
    written = {"model_type": family.model_type, "architectures": [family.architecture], **exported_config}
    carried = origin.fields if origin is not None and origin.model_type == family.model_type else {}
    if spec.stored_as is None:
        carried = {name: value for name, value in carried.items() if name not in _STORED}
    failure = None
    plain = _laid_over(_without_modules(carried), written)  # where modules that were imported are left out
    for config in (_laid_over(written, carried), _laid_over(carried, written), plain):
        failure = _check(model, config, family)
        if failure is None:
            return deepcopy(config)
    assert failure is not None
    return failure


def _without_modules(carried: Mapping[str, Any]) -> Data:
    """Without the fields that count modules of multi-token prediction, in sections too."""
    return {
        name: _without_modules(value) if isinstance(value, Mapping) else value
        for name, value in carried.items()
        if name not in MODULE_COUNTS
    }


def _check(model: ResolvedModel, config: Data, family: Family) -> _Failure | None:
    """Differences between a config and the model; None if there are none."""
    try:
        lost = _what_is_lost(model, config)
    except SpecError as error:
        return _Failure(family, error.problems, written=False)
    return _Failure(family, lost, written=True) if lost else None


def _candidates(spec: ModelSpec) -> list[Family]:
    origin = spec.huggingface.model_type if spec.huggingface else None
    if origin is not None and origin not in FAMILIES:
        message = f"unknown model_type: found {shortened(origin)}"
        raise SpecError(
            [Problem(message, path="huggingface.model_type", hint=f"one of: {', '.join(sorted(FAMILIES))}")]
        )
    return sorted(FAMILIES.values(), key=lambda family: family.model_type != origin)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Data:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def _what_is_lost(model: ResolvedModel, config: Data) -> list[Problem]:
    """Differences between a config, read again, and the model, one for each field whatever the layer."""
    again = resolve(import_config(config).spec)
    lost: dict[str, Problem] = {}
    for path, ours, theirs in differences(model, again):
        place = _without_index(path)
        lost.setdefault(place, Problem(f"expected {_shown(theirs)}, found {_shown(ours)}", path=place))
    return list(lost.values())


def _without_index(path: str) -> str:
    head, bracket, tail = path.partition("[")
    return head + "[…]" + tail.partition("]")[2] if bracket else path


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
