"""Documents: which files are read, what they remember, and how fast."""

import os
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l4spec import library
from l4spec.errors import Place, Problem, SpecError
from l4spec.spec.document import load_document, read_document, read_text
from l4spec.spec.files import MAX_BYTES


def refusal(content: bytes, folder: Path) -> str:
    path = folder / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_document(path)
    return str(caught.value).removeprefix(str(folder) + os.sep)


def test_a_document_holds_data_and_the_place_of_every_key_and_item(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: x\ntext:\n  layers:\n    - repeat: 2\n")
    document = read_document(path)
    assert document.data == {"name": "x", "text": {"layers": [{"repeat": 2}]}}
    assert document.source == path
    assert document.extends == ()
    assert document.places == {
        (): Place(str(path), 1, 1),
        ("name",): Place(str(path), 1, 1),
        ("text",): Place(str(path), 2, 1),
        ("text", "layers"): Place(str(path), 3, 3),
        ("text", "layers", 0): Place(str(path), 4, 7),
        ("text", "layers", 0, "repeat"): Place(str(path), 4, 7),
    }


def test_a_document_is_frozen() -> None:
    document = read_text("a: 1", "here")
    with pytest.raises(FrozenInstanceError):
        document.source = "there"  # type: ignore[misc]


def test_files_below_the_current_folder_are_shown_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "spec.yaml").write_text("a: on\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"^mine/spec\.yaml:1:4: a: expected"):
        read_document("mine/spec.yaml")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = read_document(path)
    assert document.data == {"a": 1, "b": 2}
    assert document.places["b",] == Place(str(path), 2, 1)


def test_what_is_no_utf8_text_is_refused_where_it_starts(tmp_path: Path) -> None:
    assert refusal("a: 1\nbé: ü".encode("latin-1"), tmp_path) == (
        "spec.yaml:2:2: expected UTF-8 text, found the byte 0xE9 (save the file as UTF-8)"
    )
    assert refusal("a: 1".encode("utf-16"), tmp_path).startswith("spec.yaml: expected UTF-8, found UTF-16")
    assert refusal(b"\x89PNG\r\n\x1a\n", tmp_path).startswith("spec.yaml:1:1: expected UTF-8 text, found the byte 0x89")
    assert refusal(b"\x7fELF\0", tmp_path).startswith("spec.yaml:1:1: expected text, found the character U+007F")


@pytest.mark.parametrize("text", ["- a\n", "5\n", "text\n", "null\n", "---\n"])
def test_the_top_must_be_a_mapping(text: str, tmp_path: Path) -> None:
    assert "expected a mapping at the top" in refusal(text.encode(), tmp_path)


def test_ten_megabytes_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"a: 1\n" * 2_000_000)
    monkeypatch.setattr("builtins.open", lambda *args: pytest.fail("the file was opened"))
    start = time.process_time()
    with pytest.raises(SpecError, match="at most 1 MiB"):
        read_document(path)
    assert time.process_time() - start < 0.1


def test_the_limit_of_size_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"a: 1\n#".ljust(MAX_BYTES, b"x"))
    assert read_document(path).data == {"a": 1}
    path.write_bytes(b"a: 1\n#".ljust(MAX_BYTES + 1, b"x"))
    with pytest.raises(SpecError, match="at most 1 MiB"):
        read_document(path)
    with pytest.raises(SpecError, match="here: expected at most 1 MiB"):
        read_text("x" * (MAX_BYTES + 1), "here")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(SpecError, match="expected a regular file, found a named pipe"):
        load_document(tmp_path / "pipe.yaml")
    with pytest.raises(SpecError, match="expected a regular file, found a device"):
        load_document(os.devnull)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "spec.yaml"
    path.write_text("a: 1\n")
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(SpecError, match=r"spec\.yaml: cannot read the file: Permission denied"):
        read_document(path)


def test_a_spec_without_a_name_is_called_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine-32e.yaml").write_text("a: 1\n")
    (tmp_path / "named.yaml").write_text("name: other\n")
    assert load_document(tmp_path / "mine-32e.yaml").data == {"name": "mine-32e", "a": 1}
    assert load_document(tmp_path / "named.yaml").data == {"name": "other"}


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@example(b"\xff\xfe")
@example(b"a: \xed\xa0\x80")
@settings(max_examples=200)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    start = time.process_time()
    problems: tuple[Problem, ...] = ()
    try:
        load_document(path)
    except SpecError as error:
        problems = error.problems
    assert all(problem.place for problem in problems)
    assert time.process_time() - start < 1


def test_a_typical_spec_and_its_parents_are_read_in_milliseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_PACKAGE", tmp_path)
    parts = "".join(
        f"    p{i}: {{kind: gqa, num_heads: 40, mask: {{kind: chunked, size: 8192}}}}\n    q{i}:\n      kind: swiglu\n"
        for i in range(25)
    )
    (tmp_path / "grandparent.yaml").write_text(f"l4spec: 1\ntext:\n  hidden_size: 5120\n  parts:\n{parts}")
    (tmp_path / "parent.yaml").write_text("extends: grandparent.yaml\ntext: {hidden_size: 1024}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\ntext: {parts: {p0: {num_heads: 8}}}\n")
    seconds = []
    for _ in range(20):
        start = time.process_time()
        load_document(tmp_path / "child.yaml", ["text.hidden_size=2048"])
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.02  # 1.6 ms on the machine that it was written on; this leaves room for slow ones
