"""Published measurements, one per row, with every setting that was published and where."""

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from l4spec.errors import Problem, SpecError, UserError
from l4spec.spec.files import read_utf8

PUBLISHED = Path(__file__).with_name("published.csv")
MOST_BYTES = 8 << 20
YES_OR_NO = "bool"
"""Unit of a row that says whether something fits."""
FAMILIES = ("SRV", "THR", "TRN", "MEM", "KV", "FIT", "FLOP", "KER")
"""Prefixes of ids: serving, most throughput, training, memory, KV cache, counts of FLOPs, kernels."""
_TEXTS = frozenset(("notes", "source"))
_LONGEST = (200, 10_000)
"""Characters of a setting, and of a text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure as it was published; settings that were not published are empty."""

    id: str
    model: str
    hardware: str
    n_gpus: str
    precision_weights: str
    precision_kv: str
    tp: str
    pp: str
    ep: str
    dp: str
    batch_or_concurrency: str
    isl: str
    osl: str
    metric: str
    value: str
    unit: str
    source: str
    notes: str
    split: str

    @property
    def family(self) -> str:
        """SRV serving, THR maximum throughput, TRN training, MEM and KV memory of engines, FLOP counts, KER kernels."""
        return self.id.partition("-")[0]

    @property
    def published(self) -> float:
        """The figure in the row's unit."""
        return float(self.value)

    @property
    def calibrates(self) -> bool:
        """True if coefficients may be fitted on this row."""
        return self.split == "calibrate"

    @property
    def document(self) -> str:
        """The document without version or record, which groups errors by source."""
        return re.split(r"[@ ]", self.source, maxsplit=1)[0]

    def number(self, field: str) -> int | None:
        """A setting as a whole number; None when it is not one."""
        text: str = getattr(self, field)
        return int(text) if text.isdigit() else None

    def noted(self, pattern: str, default: int) -> int:
        """The number that `pattern` captures in the notes."""
        match = re.search(pattern, self.notes)
        return int(match[1]) if match else default


def read_rows(path: Path) -> tuple[Row, ...]:
    """Every row of a CSV file with the columns of `Row`. Raises UserError for another file, naming the line."""
    names = {field.name for field in fields(Row)}
    place = str(path)[:200]
    try:
        reader = csv.DictReader(io.StringIO(read_utf8(path, MOST_BYTES), newline=""), strict=True)
        lacking = sorted(names - set(reader.fieldnames or ()))
        if lacking:
            raise UserError([Problem(f"lacks the columns {', '.join(lacking)}", path=place)])
        rows = tuple(Row(**{name: record[name] or "" for name in names}) for record in reader)
    except csv.Error as error:
        raise UserError([Problem(f"is no CSV file: {error}", path=place)]) from None
    problems = [problem for line, row in enumerate(rows, start=2) for problem in _problems(row, line, place)]
    if problems:
        raise SpecError(problems)
    return rows


def _problems(row: Row, line: int, place: str) -> Iterator[Problem]:
    """Problems that prevent a row's replay: no id or model, an invalid figure, a cell that is too long."""
    if row.unit == YES_OR_NO:
        if row.value not in ("0", "1"):
            yield Problem(f"line {line}: '{row.value[:60]}' is neither 0 nor 1", path=place)
    elif not _is_positive(row.value):
        yield Problem(f"line {line}: '{row.value[:60]}' is no number above 0", path=place)
    if row.family not in FAMILIES:
        yield Problem(f"line {line}: the id '{row.id[:60]}' begins with none of {', '.join(FAMILIES)}", path=place)
    for name in ("id", "model", "metric", "split"):
        if not getattr(row, name):
            yield Problem(f"line {line}: the cell of {name} is empty", path=place)
    for name in (field.name for field in fields(Row)):
        cell: str = getattr(row, name)
        if len(cell) > _LONGEST[name in _TEXTS]:
            yield Problem(f"line {line}: the cell of {name} has {len(cell):,} characters", path=place)


def _is_positive(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and float(text) > 0
    except ValueError:
        return False


@lru_cache(maxsize=1)
def published_rows() -> tuple[Row, ...]:
    """The packaged rows."""
    return read_rows(PUBLISHED)
