"""From a path to a config as plain data: JSON of `config.json`, alone or in the folder of a model, and its name."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, SpecError
from l4spec.spec.files import label, read_utf8
from l4spec.spec.tree import shortened

Data = dict[str, Any]
CONFIG = "config.json"
MAX_CONFIG_BYTES = 64 << 20
"""A quantized mixture of experts lists its exceptions one by one: published configs of 3 MB exist."""
BESIDE = "hf_quant_config.json"
"""File of NVIDIA's ModelOpt with the weight format, beside configs without it."""
_CACHED = r"models--(?:.+?--)?(.+)"


def read_config(path: Path) -> tuple[Data, str]:
    """(the config, the name of its model) of a `config.json` or of the folder that holds one. Raises SpecError.

    Contents of `hf_quant_config.json` beside it are added under `quantization_config` if the config has none.
    """
    path = path / CONFIG if path.is_dir() else path
    config = _read_mapping(path)
    beside = path.parent / BESIDE
    if path.name == CONFIG and "quantization_config" not in config and beside.is_file():
        config["quantization_config"] = {"quant_method": "modelopt", **_read_mapping(beside).get("quantization", {})}
    return config, _name_of(config, path)


def is_config(path: Path) -> bool:
    """True if a path can only be a config: a JSON file, or a folder with a config.json and no spec.yaml."""
    if path.suffix == ".json":
        return path.is_file()
    return path.is_dir() and (path / CONFIG).is_file() and not (path / "spec.yaml").is_file()


def _read_mapping(path: Path) -> Data:
    config = _parse_json(read_utf8(path, MAX_CONFIG_BYTES), label(path))
    if not isinstance(config, dict):
        raise SpecError([Problem(f"expected a mapping, found {shortened(config)}", place=Place(label(path)))])
    return config


def _name_of(config: Mapping[str, Any], path: Path) -> str:
    """A config is called as its folder; in the cache of Hugging Face as the folder of its repository."""
    if given := config.get("_name_or_path"):
        return str(given).rstrip("/").rsplit("/", 1)[-1]
    folder = path.resolve().parent
    for part in reversed(folder.parts):
        if match := re.fullmatch(_CACHED, part):
            return match[1]
    return folder.name if path.stem == "config" else path.stem


def _parse_json(text: str, file: str) -> Any:
    import json  # configs are rarer than specs

    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        place = Place(file, error.lineno, error.colno)
        raise SpecError([Problem(f"expected JSON: {error.msg}", place=place)]) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";", maxsplit=1)[0]
        raise SpecError([Problem(f"expected a JSON config: {reason}", place=Place(file))]) from None


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> Data:
    result: Data = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the field {key[:80]!r} appears twice")
        result[key] = value
    return result
