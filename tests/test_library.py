"""Names and paths of specs: what is found where, and what is said when nothing is."""

from pathlib import Path

import pytest

from l4spec import library
from l4spec.errors import SpecError
from l4spec.library import find_spec, shipped_specs, specs_folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel's `_specs` with a few specs; the current folder is empty and elsewhere."""
    folder = tmp_path / "package" / "_specs"
    for name in ("scout", "tiny/scout", "compare/llama-3.1-8b", "articles/scout"):
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a: 1\n")
    (folder / "README.md").write_text("no spec")
    monkeypatch.setattr(library, "_PACKAGE", tmp_path / "package")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def refusal(name: str) -> str:
    with pytest.raises(SpecError) as caught:
        find_spec(name)
    return str(caught.value)


def test_shipped_specs_are_named_by_their_path_without_suffix(shelf: Path) -> None:
    assert list(shipped_specs()) == ["articles/scout", "compare/llama-3.1-8b", "scout", "tiny/scout"]
    assert shipped_specs()["tiny/scout"] == shelf / "tiny" / "scout.yaml"


def test_every_shipped_name_finds_its_file(shelf: Path) -> None:
    assert {name: find_spec(name) for name in shipped_specs()} == shipped_specs()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("scout.yaml", "scout.yaml"),
        ("specs/scout.yaml", "scout.yaml"),
        ("./specs/tiny/scout", "tiny/scout.yaml"),
        ("llama-3.1-8b", "compare/llama-3.1-8b.yaml"),
        ("llama-3.1-8b.yaml", "compare/llama-3.1-8b.yaml"),
        ("specs/compare/llama-3.1-8b.yaml", "compare/llama-3.1-8b.yaml"),
    ],
)
def test_a_shipped_spec_has_several_spellings(shelf: Path, name: str, file: str) -> None:
    assert find_spec(name) == shelf / file


def test_a_file_at_the_path_wins_over_a_shipped_name(shelf: Path) -> None:
    Path("scout.yaml").write_text("mine: 1\n")
    assert find_spec("scout.yaml") == Path("scout.yaml")
    assert find_spec(Path("scout.yaml")) == Path("scout.yaml")
    assert find_spec("scout") == shelf / "scout.yaml"


def test_a_folder_does_not_hide_a_shipped_name(shelf: Path) -> None:
    Path("scout").mkdir()
    assert find_spec("scout") == shelf / "scout.yaml"


def test_a_source_checkout_keeps_its_specs_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l4spec").mkdir()
    monkeypatch.setattr(library, "_PACKAGE", tmp_path / "l4spec")
    assert specs_folder() == tmp_path / "specs"
    assert shipped_specs() == {}


def test_a_name_cannot_lead_out_of_the_shelf(shelf: Path) -> None:
    (shelf.parent / "outside.yaml").write_text("a: 1\n")
    assert "no spec named" in refusal("tiny/../../outside")
    assert "no spec named" in refusal(str(shelf.parent / "outside"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scuot", "no spec named 'scuot', neither a file nor a shipped spec (did you mean 'scout'?)"),
        ("SCOUTS", "(did you mean 'scout'?)"),
        ("llama-4-scout", "(did you mean 'scout'?)"),
        ("tiny/scot", "(did you mean 'tiny/scout'?)"),
        ("lama-3.1-8b", "(did you mean 'llama-3.1-8b'?)"),
        ("min.yaml", "(did you mean 'mine.yaml'?)"),
        ("sub/other.yml", "(did you mean 'sub/others.yml'?)"),
        ("sub", "expected a spec, found the folder 'sub' (it holds others.yml)"),
        ("/", "expected a spec, found the folder '/'"),
        ("", "expected the name or the path of a spec, found nothing"),
        ("../package/_specs/sc", "no spec named"),
        ("mine.yaml/scout", "no spec named"),
        ("a\0b", "no spec named 'a\\x00b'"),
        ("loop.yaml", "no spec named"),
        ("x" * 100_000, "no spec named 'xxx"),
        ("\udcff.yaml", "no spec named"),
        ("[.yaml", "no spec named"),
        ("*", "no spec named"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(shelf: Path, name: str, expected: str) -> None:
    Path("mine.yaml").write_text("a: 1\n")
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("sub").mkdir()
    Path("sub/others.yml").write_text("a: 1\n")
    message = refusal(name)
    assert expected in message
    assert len(message) < 1000
