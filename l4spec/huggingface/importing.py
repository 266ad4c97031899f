"""From a Hugging Face config to a spec."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, SpecError
from l4spec.graph.build import build_graph
from l4spec.huggingface.config_file import read_config
from l4spec.huggingface.families import FAMILIES
from l4spec.huggingface.families.refused import REFUSED
from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.heads import refused_head
from l4spec.huggingface.modules import modules_left_out
from l4spec.huggingface.passthrough_fields import finish_common
from l4spec.huggingface.rope import rope_style
from l4spec.huggingface.storable import storable
from l4spec.huggingface.stored.formats import UnreadFormat, read_format
from l4spec.huggingface.stored.tables import stored_as
from l4spec.huggingface.yaml_out import to_yaml
from l4spec.spec.document import Document
from l4spec.spec.files import MAX_BYTES, label
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import ResolvedStack, resolve
from l4spec.spec.tree import shortened

Data = dict[str, Any]
_DROPPED_IF_NULL = ("architectures", "quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class ImportedSpec:
    """An imported model: as plain data, as the equal commented YAML, and as a checked spec.

    `notes` name fields that were left out, ignored or assumed; they are in the YAML too.
    """

    data: Data
    yaml: str
    spec: ModelSpec
    notes: tuple[str, ...] = ()


def import_file(path: Path | str, name: str | None = None, *, ignore: Sequence[str] = ()) -> ImportedSpec:
    """The spec of a `config.json`, or of the folder that holds one; `ignore` as for `import_config`.

    Raises SpecError for anything that is no config of a known family.
    """
    path = Path(path)
    config, usual_name = read_config(path)
    return import_config(config, name=name or usual_name, file=label(path), ignore=ignore)


def import_config(
    config: Mapping[str, Any], *, name: str | None = None, file: str = "config", ignore: Sequence[str] = ()
) -> ImportedSpec:
    """The spec of a config as plain data (the JSON of a release, or `to_dict()` of a transformers config).

    Raises SpecError that names every unknown field, every value that would change the mathematics without the spec
    language having words for it, an unknown `model_type`, and a class with another head than a language model's.
    `ignore` names fields that are read as if the config did not have them (`text_config.rope_scaling` in a mapping): a
    last resort, which the result notes. `file` stands for the config in messages.
    """
    family = _family(config, file)
    notes = [f"read as if the config had no {path}, as asked" for path in ignore]
    config = _without(config, ignore, file)
    fields = Fields(_unaliased(config, family, file), family.defaults, file, notes=notes)
    if problem := refused_head(config, file):
        fields.problems.append(problem)
    sections = family.read(fields)
    fields.fix(family.fixed)
    carried, left = storable(_worth_keeping(finish_common(fields, family.ignorable)))
    fields.raise_problems()
    if left:
        more = f" and {len(left) - 8:,} more" if len(left) > 8 else ""
        fields.note(f"left out, since a spec cannot hold it: {', '.join(left[:8])}{more}")
    if fields.assumed:
        values = ", ".join(f"{name} {value}" for name, value in fields.assumed.items())
        fields.note(f"not in the config, and taken as transformers assumes: {values}")
    text_config = config.get("text_config")
    style = rope_style(Fields(text_config if isinstance(text_config, dict) else config, {}, file))
    data: Data = {
        "l4spec": 1,
        "name": _clean(name or str(config.get("_name_or_path") or family.model_type).rstrip("/").rsplit("/", 1)[-1]),
        "sources": [
            f"Hugging Face config of model_type {family.model_type}",
            f"huggingface/transformers {family.source}",
        ],
        **sections,
        "huggingface": {"model_type": family.model_type, "rope_style": style, "fields": carried},
    }
    spec = parse_spec(Document(data, {(): Place(file)}, file))
    stored = _stored(config, spec, family, fields)
    if stored is not None:
        origin = data.pop("huggingface")
        data |= {"stored_as": stored, "huggingface": origin}
        spec = parse_spec(Document(data, {(): Place(file)}, file))
    if spec.text.mtp is None and (left_out := modules_left_out(config)) is not None:
        fields.note(left_out)
    return ImportedSpec(data, _yaml(data, family, spec, notes, file), spec, tuple(notes))


def _stored(config: Mapping[str, Any], spec: ModelSpec, family: Family, fields: Fields) -> Any:
    """Storage format of the checkpoint's weights, as plain data; None for unquantized weights and unknown formats."""
    try:
        result = read_format(config)
    except UnreadFormat as error:
        reported = "the plan's default is therefore bf16: name what is stored with --quantization"
        fields.note(f"its weights are stored {error}, which is not read; {reported}")
        return None
    if result is None:
        return None
    stored = stored_as(result, build_graph(resolve(spec)), family.naming)
    return stored if isinstance(stored, str) else stored.model_dump(mode="json", exclude_defaults=True)


def _yaml(data: Data, family: Family, spec: ModelSpec, notes: Sequence[str], file: str) -> str:
    text = to_yaml(data, head=_head(data, family, notes), notes=_notes(spec))
    if len(text.encode()) > MAX_BYTES:
        raise SpecError([Problem("says more than a spec of 1 MiB can hold", place=Place(file))])
    return text


def _family(config: Mapping[str, Any], file: str) -> Family:
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is not None:
        return family
    place = Place(file)
    if isinstance(model_type, str) and model_type in REFUSED:
        raise SpecError([Problem(f"{model_type} is not read: {REFUSED[model_type]}", path="model_type", place=place)])
    model_type_text = "nothing" if model_type is None else shortened(model_type)
    hint = f"one of: {', '.join(sorted(FAMILIES))}"
    raise SpecError(
        [Problem(f"unknown model_type: found {model_type_text}", path="model_type", place=place, hint=hint)]
    )


def _without(config: Mapping[str, Any], ignore: Sequence[str], file: str) -> Mapping[str, Any]:
    """The config without the fields at these dotted paths. Raises SpecError for a path that is not there."""
    if not ignore:
        return config
    result: Any = deepcopy(dict(config))
    for path in ignore:
        inner, (*outer, last) = result, path.split(".")
        for step in outer:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise SpecError(
                [Problem("is to be ignored, but the config has no such field", path=path, place=Place(file))]
            )
        del inner[last]
    kept: Mapping[str, Any] = result
    return kept


def _unaliased(config: Mapping[str, Any], family: Family, file: str) -> Data:
    config_by_name = dict(config)
    for other, name in family.aliases.items():
        if other in config_by_name:
            value = config_by_name.pop(other)
            if config_by_name.setdefault(name, value) != value:
                message = f"says something else than {name}"
                raise SpecError([Problem(message, path=other, place=Place(file))])
    return config_by_name


def _worth_keeping(carried: Mapping[str, Any]) -> Data:
    return {key: value for key, value in carried.items() if key not in _DROPPED_IF_NULL or value is not None}


def _clean(name: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9._ -]", "-", name).strip("-. _")[:120]
    return kept or "imported"


def _head(data: Data, family: Family, notes: Sequence[str]) -> Sequence[str]:
    return (
        f"{data['name']}, imported from its Hugging Face config (model_type {family.model_type}).",
        *(f"Note: {' '.join(note.split())[:300]}" for note in notes),
        "",
        f"  l4spec plan {data['name']}.yaml --gpus 8xH100",
        "",
    )


def _notes(spec: ModelSpec) -> dict[str, str]:
    """Comments by path: number of layers of each part, and the purpose of the other sections."""
    model = resolve(spec)
    notes = {
        "text.layers": f"{len(model.text.stack.blocks)} blocks",
        "stored_as": "how the checkpoint stores its weights, by its own config: what `l4spec plan` assumes",
        "huggingface": "for `l4spec export`: family, spelling, and fields that change no number of the forward pass",
        **_part_notes("text.parts", model.text.stack),
    }
    if model.vision is not None:
        notes["vision"] = f"{model.vision.num_tokens_per_tile} tokens per tile"
        notes["vision.max_tiles"] = "of the released processors; a config does not say it"
        notes.update(_part_notes("vision.tower.parts", model.vision.stack))
    return notes


def _part_notes(path: str, stack: ResolvedStack) -> dict[str, str]:
    uses = Counter(part.name for block in stack.blocks for _, part in block.parts)
    return {f"{path}.{name}": f"{count} layer{'s' if count > 1 else ''}" for name, count in uses.items()}
