"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from l4spec.cli.output import write_file
from l4spec.errors import UserError


def test_a_file_ends_with_one_newline(tmp_path: Path) -> None:
    for text in ("a", "a\n"):
        write_file(tmp_path / "x", text, force=True)
        assert (tmp_path / "x").read_text() == "a\n"


def test_a_new_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    write_file(tmp_path / "new", "x", force=False)
    (tmp_path / "other").write_text("x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_file(tmp_path / "x", "new", force=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("name", ["a/b", "x\0y", "x" * 300])
def test_impossible_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_file(tmp_path / name, "x", force=False)
