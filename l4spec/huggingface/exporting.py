"""From a spec to a Hugging Face config, checked by reading it again."""

from collections.abc import Iterator, Mapping
from typing import Any

from l4spec.errors import Problem, SpecError
from l4spec.huggingface.families import FAMILIES
from l4spec.huggingface.family import Family
from l4spec.huggingface.importing import import_config
from l4spec.huggingface.meaning import differences
from l4spec.spec.model import ModelSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel, resolve
from l4spec.spec.tree import shortened

Data = dict[str, Any]
_MOST_SHOWN = 8


def export_config(spec: ModelSpec) -> Data:
    """The Hugging Face config of a model: the family it was imported from, or the first one that can say it.

    Equal to the imported config in every field that the family's mathematics reads, in number formats, and in the
    fields without effect that the import carried along; fields that transformers fills in are written out.
    Raises SpecError, naming what the nearest family has no words for, when none fits.
    """
    model = resolve(spec)
    failures: list[tuple[Family, list[Problem]]] = []
    for family in _candidates(spec):
        problems: list[Problem] = []
        for config in _attempts(model, spec, family, problems):
            problems = _what_is_lost(model, config)
            if not problems:
                return config
        failures.append((family, problems))
    family, problems = failures[0] if spec.huggingface else min(failures, key=lambda failure: len(failure[1]))
    lead = Problem(f"no Hugging Face family can say this model; {family.model_type} is nearest, but")
    raise SpecError([lead, *problems[:_MOST_SHOWN]])


def _candidates(spec: ModelSpec) -> list[Family]:
    origin = spec.huggingface.model_type if spec.huggingface else None
    if origin is not None and origin not in FAMILIES:
        message = f"unknown model_type: found {shortened(origin)}"
        raise SpecError(
            [Problem(message, path="huggingface.model_type", hint=f"one of: {', '.join(sorted(FAMILIES))}")]
        )
    return sorted(FAMILIES.values(), key=lambda family: family.model_type != origin)


def _attempts(model: ResolvedModel, spec: ModelSpec, family: Family, problems: list[Problem]) -> Iterator[Data]:
    """First as the config was written, where fields say a thing twice; then with the model's own words above them."""
    origin = spec.huggingface
    same = origin is not None and origin.model_type == family.model_type
    style: RopeStyle = origin.rope_style if origin else "rope_scaling"
    try:
        written = {
            "model_type": family.model_type,
            "architectures": [family.architecture],
            **family.write(model, style),
        }
    except SpecError as error:
        problems.extend(error.problems)
        return
    if origin is not None and same:
        yield _laid_over(written, origin.fields)
        yield _laid_over(origin.fields, written)
    else:
        yield written


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> Data:
    found = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _laid_over(found[key], value) if both else value
    return found


def _what_is_lost(model: ResolvedModel, config: Data) -> list[Problem]:
    """What a config says differently from the model, once for each place whatever the layer."""
    try:
        again = resolve(import_config(config).spec)
    except SpecError as error:
        return list(error.problems)
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
