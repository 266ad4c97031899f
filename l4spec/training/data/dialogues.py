"""Dialogues of one's own, a JSON object per line: a prompt, its answer, and for preferences a rejected answer."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, SpecError, UserError
from l4spec.spec.files import label, read_utf8
from l4spec.training.data.synthetic import TextDocument, TextSegment

MAX_BYTES = 1 << 28
"""Largest file of dialogues."""
_FIELDS = ("prompt", "answer", "rejected")
_HINT = '{"prompt": "2+2=", "answer": "4", "rejected": "5"}, the last of them for preferences alone'


def dialogues_of(files: Sequence[str], held_out: float, *, is_held_out: bool) -> Sequence[TextDocument]:
    """The dialogues of some files that are trained on, or the last share of them, which is not.

    Raises SpecError with every line that is no dialogue, UserError for fewer than two.
    """
    stamps = tuple(_stamp(Path(file)) for file in files)
    trained, kept = _read(tuple(files), stamps, held_out)
    return kept if is_held_out else trained


def _stamp(path: Path) -> tuple[int, int]:
    """Modification time and size of a file, so that a rewritten one is read again."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _read(
    files: tuple[str, ...], stamps: tuple[tuple[int, int], ...], held_out: float
) -> tuple[Sequence[TextDocument], Sequence[TextDocument]]:
    rows = [row for file in files for row in _rows(Path(file))]
    if len(rows) < 2:
        raise UserError(f"{', '.join(files)}: expected at least two dialogues, one JSON object a line")
    kept = max(1, round(len(rows) * held_out))
    return rows[:-kept], rows[-kept:]


def _rows(path: Path) -> Iterator[TextDocument]:
    problems, rows = [], []
    for number, line in enumerate(read_utf8(path, MAX_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        row, message = _parsed(line)
        if message:
            problems.append(Problem(message, place=Place(label(path), number), hint=_HINT))
        else:
            rows.append((TextSegment(row["prompt"], learned=False), _answer(row)))
    if problems:
        raise SpecError(problems)
    yield from rows


def _answer(row: dict[str, Any]) -> TextSegment:
    return TextSegment(row["answer"], rejected=row.get("rejected"))


def _parsed(line: str) -> tuple[dict[str, Any], str]:
    """A line's dialogue, or its error."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "expected a JSON object"
    if not isinstance(row, dict):
        return {}, "expected a JSON object"
    if unknown := sorted(set(row) - set(_FIELDS)):
        return {}, f"unknown field {str(unknown[0])[:60]!r}"
    for name in _FIELDS[: 3 if "rejected" in row else 2]:
        if not isinstance(row.get(name), str) or not row[name]:
            return {}, f"expected a text in {name!r}"
    return row, ""
