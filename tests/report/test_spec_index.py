"""The index of shipped specs says what compiling them says, and is ignored where a spec has changed."""

from pathlib import Path

import pytest

from l4spec.library import specs_folder
from l4spec.report import spec_index


def test_the_index_is_in_step_with_specs_and_code() -> None:
    written = (specs_folder() / spec_index.FILE).read_text(encoding="utf-8")
    assert written == spec_index.index_text(), "run: python -m l4spec.report.spec_index"


def test_reading_the_index_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_index, "compiled_entries", lambda: pytest.fail("a spec was compiled"))
    assert {"scout", "maverick", "behemoth"} <= {entry.name for entry in spec_index.entries()}


@pytest.mark.parametrize("damage", ["", "[]", '{"digest": 1}', "{", '{"digest": "0", "specs": []}'])
def test_an_index_of_other_specs_or_a_damaged_one_is_ignored(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / spec_index.FILE).write_text(damage, encoding="utf-8")
    monkeypatch.setattr(spec_index, "specs_folder", lambda: tmp_path)
    monkeypatch.setattr(spec_index, "compiled_entries", lambda: ())
    assert spec_index.entries() == ()


def test_any_changed_spec_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "one.yaml"
    monkeypatch.setattr(spec_index, "shipped_specs", lambda: {"one": file})
    digests = set()
    for text in ("a: 1\n", "a: 2\n"):
        file.write_text(text, encoding="utf-8")
        digests.add(spec_index.digest())
    assert len(digests) == 2
