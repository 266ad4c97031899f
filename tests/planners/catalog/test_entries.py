"""Every shipped file loads, cites a document for each number, and is found by all its names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.catalog.registry import normal
from l4spec.errors import UserError
from planners import catalog
from planners.catalog import Engine, Entry, Hardware, Quantization, Sourced, engine, hardware, loader, quantization
from planners.catalog.engines import Measurement
from planners.catalog.loader import Folder

FOLDERS: dict[Folder, Any] = {"hardware": hardware, "quantization": quantization, "engines": engine}
FILES = sorted(path for folder in FOLDERS for path in loader.SHELVES[folder].path.glob("*.yaml"))


def _folder(path: Path) -> Folder:
    return next(folder for folder in FOLDERS if loader.SHELVES[folder].path == path.parent)


def _inside(value: object) -> Iterator[object]:
    """All models and numbers below `value`."""
    yield value
    if isinstance(value, (Entry, Sourced, Measurement)) or hasattr(type(value), "model_fields"):
        for name in type(value).model_fields:  # type: ignore[attr-defined]
            yield from _inside(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _inside(item)


def test_the_catalogue_has_what_the_plan_promises() -> None:
    gpus = "a100-40gb a100-80gb b200 gb200 h100-nvl h100-pcie h100-sxm h200 l40s m3-ultra mi300x rtx-4090"
    assert set(gpus.split()) <= set(catalog.shipped_names("hardware"))
    schemes = {"bf16", "fp16", "fp32", "fp8", "fp8-experts", "fp8-block", "int8", "w4a16", "w4a16-ffn", "int4-mixed"}
    assert schemes | {"nvfp4", "mxfp4", "gguf-q8_0", "gguf-q4_k_m"} <= set(catalog.shipped_names("quantization"))
    engines = {"ideal", "full", "vllm", "vllm-hybrid", "sglang-hybrid", "llama.cpp", "tensorrt-llm"}
    assert engines <= set(catalog.shipped_names("engines"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_loads_under_its_own_name_and_is_found_by_each_alias(path: Path) -> None:
    load = FOLDERS[_folder(path)]
    entry = load(path.stem)
    assert isinstance(entry, (Hardware, Quantization, Engine))
    assert entry.name == path.stem
    for alias in entry.aliases:
        assert load(alias) is entry
        assert load(f" {alias.upper().replace('-', '_')} ") is entry
        assert normal(alias) == alias, "an alias in another spelling can never be found"
    assert set(loader.SHELVES[_folder(path)].aliases.values()) <= set(catalog.shipped_names(_folder(path)))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_two_entries_share_a_name(folder: Folder) -> None:
    claimed = [name for path in loader.SHELVES[folder].path.glob("*.yaml") for name in _names(folder, path.stem)]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == set(catalog.known_names(folder))


def _names(folder: Folder, stem: str) -> tuple[str, ...]:
    entry = FOLDERS[folder](stem)
    return (entry.name, *entry.aliases)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_number_names_a_public_document(path: Path) -> None:
    entry = FOLDERS[_folder(path)](path.stem)
    cited = [item for item in _inside(entry) if isinstance(item, (Sourced, Measurement))]
    if not isinstance(entry, Hardware):
        cited = [item for item in cited if item is not entry]
        assert len(entry.source) > 10
    for item in cited:
        assert " " in item.source or "#" in item.source
        assert not item.source.startswith(("/", "~", "."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_named_document_is_cited_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    for key in data.get("sources", {}):
        assert f"source: {key}" in text, f"'{key}' is named under sources and never cited"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_file_read_strictly_by_its_path_says_the_same(path: Path) -> None:
    load = FOLDERS[_folder(path)]
    assert load(str(path)) == load(path.stem)


@pytest.mark.parametrize(
    ("load", "name", "hint"),
    [
        (hardware, "h1000", "did you mean 'h100'?"),
        (hardware, "mi300", "did you mean 'mi300x'?"),
        (hardware, "tpu-v5p", "one of: a10, a100-40gb, a100-80gb, "),
        (quantization, "int-4", "did you mean 'int4'?"),
        (engine, "vlm-hybrid", "did you mean 'vllm-hybrid'?"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(load: Any, name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load(name)
    assert hint in caught.value.problems[0].hint


@given(st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_text_is_an_entry_or_a_user_error(text: str) -> None:
    for load in FOLDERS.values():
        assert str(_loaded(load, text))


def _loaded(load: Any, text: str) -> Entry | UserError:
    try:
        entry = load(text)
    except UserError as error:
        return error
    assert isinstance(entry, Entry)
    return entry
