"""From a Hugging Face config to a spec."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from l4spec.errors import Place, Problem, SpecError, nearest
from l4spec.huggingface.families import FAMILIES
from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.passthrough_fields import finish_common
from l4spec.huggingface.rope import rope_style
from l4spec.huggingface.yaml_out import to_yaml
from l4spec.spec.document import Document
from l4spec.spec.files import label, read_utf8
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import ResolvedStack, resolve
from l4spec.spec.tree import shortened

Data = dict[str, Any]
_DROPPED_IF_NULL = ("architectures", "quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class ImportedSpec:
    """An imported model: as plain data, as commented YAML that says the same, and checked."""

    data: Data
    yaml: str
    spec: ModelSpec


def import_file(path: Path | str, name: str | None = None) -> ImportedSpec:
    """The spec of a `config.json`. Raises SpecError for anything that is no config of a known family."""
    path = Path(path)
    config = _parse_json(read_utf8(path), label(path))
    if not isinstance(config, dict):
        raise SpecError([Problem(f"expected a mapping, found {shortened(config)}", place=Place(label(path)))])
    return import_config(config, name=name or _name_of(config, path), file=label(path))


def import_config(config: Mapping[str, Any], *, name: str | None = None, file: str = "config") -> ImportedSpec:
    """The spec of a config as plain data (the JSON of a release, or `to_dict()` of a transformers config).

    Raises SpecError that names every unknown field, every value that would change the mathematics without the spec
    language having words for it, and an unknown `model_type`. `file` stands for the config in messages.
    """
    family = _family(config, file)
    fields = Fields(_unaliased(config, family, file), family.defaults, file)
    sections = family.read(fields)
    carried = finish_common(fields, family.ignorable)
    fields.raise_problems()
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
        "huggingface": {"model_type": family.model_type, "rope_style": style, "fields": _json_only(carried)},
    }
    spec = parse_spec(Document(data, {(): Place(file)}, file))
    return ImportedSpec(data, to_yaml(data, head=_head(data, family, carried), notes=_notes(spec)), spec)


def _family(config: Mapping[str, Any], file: str) -> Family:
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is not None:
        return family
    found = "nothing" if model_type is None else shortened(model_type)
    hint = nearest(str(model_type)[:80], FAMILIES)
    raise SpecError([Problem(f"unknown model_type: found {found}", path="model_type", place=Place(file), hint=hint)])


def _unaliased(config: Mapping[str, Any], family: Family, file: str) -> Data:
    found = dict(config)
    for other, name in family.aliases.items():
        if other in found:
            value = found.pop(other)
            if found.setdefault(name, value) != value:
                message = f"says something else than {name}"
                raise SpecError([Problem(message, path=other, place=Place(file))])
    return found


def _json_only(carried: Mapping[str, Any]) -> Data:
    """Carried fields as plain JSON: lists for tuples, text for keys."""
    return {
        str(key): _plain(value) for key, value in carried.items() if key not in _DROPPED_IF_NULL or value is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _json_only(value)
    if isinstance(value, list | tuple | set):
        return [_plain(inner) for inner in list(value)]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _name_of(config: Any, path: Path) -> str:
    """A config.json is called as its folder."""
    stem = path.resolve().parent.name if path.stem == "config" else path.stem
    given = config.get("_name_or_path") if isinstance(config, Mapping) else None
    return str(given).rstrip("/").rsplit("/", 1)[-1] if given else stem


def _clean(name: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9._ -]", "-", name).strip("-. _")[:120]
    return kept or "imported"


def _parse_json(text: str, file: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        place = Place(file, error.lineno, error.colno)
        raise SpecError([Problem(f"expected JSON: {error.msg}", place=place)]) from None
    except (ValueError, RecursionError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";", maxsplit=1)[0]
        raise SpecError([Problem(f"expected a JSON config: {told}", place=Place(file))]) from None


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> Data:
    found: Data = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the field {key[:80]!r} stands there twice")
        found[key] = value
    return found


def _head(data: Data, family: Family, carried: Mapping[str, Any]) -> Sequence[str]:
    stored = "quantization_config" in carried
    return (
        f"{data['name']}, imported from its Hugging Face config (model_type {family.model_type}).",
        "",
        f"  l4spec plan {data['name']}.yaml --gpus 8xH100",
        "",
        *(("Its published weights are quantized; plan them with --quantization.", "") if stored else ()),
    )


def _notes(spec: ModelSpec) -> dict[str, str]:
    """Comments by path: how many layers use a part, and what the other sections are for."""
    model = resolve(spec)
    notes = {
        "text.layers": f"{len(model.text.stack.blocks)} blocks",
        "huggingface": "for `l4spec export`: family, spelling, and fields that change no number of the forward pass",
        **_part_notes("text.parts", model.text.stack),
    }
    if model.vision is not None:
        notes["vision"] = f"{model.vision.num_tokens_per_tile} tokens a tile"
        notes["vision.max_tiles"] = "of the released processors; a config does not say it"
        notes.update(_part_notes("vision.tower.parts", model.vision.stack))
    return notes


def _part_notes(path: str, stack: ResolvedStack) -> dict[str, str]:
    uses = Counter(part.name for block in stack.blocks for part in (block.attention, block.ffn) if part is not None)
    return {f"{path}.{name}": f"{count} layer{'s' if count > 1 else ''}" for name, count in uses.items()}
