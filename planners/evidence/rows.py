"""Published measurements, one per row, with every setting that was published and where."""

import csv
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from l4spec.errors import Problem, UserError

PUBLISHED = Path(__file__).with_name("published.csv")


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
        """SRV serving, THR maximum throughput, TRN training, FLOP counts, KER kernels."""
        return self.id.partition("-")[0]

    @property
    def published(self) -> float:
        """The figure in the row's unit."""
        return float(self.value)

    @property
    def calibrates(self) -> bool:
        """Whether coefficients may be fitted on this row."""
        return self.split == "calibrate"

    @property
    def document(self) -> str:
        """The document without version or record: what is called one source when errors are grouped."""
        return re.split(r"[@ ]", self.source, maxsplit=1)[0]

    def number(self, field: str) -> int | None:
        """A setting as a whole number; None when it is not one."""
        text: str = getattr(self, field)
        return int(text) if text.isdigit() else None

    def noted(self, pattern: str, default: int) -> int:
        """The number that `pattern` captures in the notes."""
        found = re.search(pattern, self.notes)
        return int(found[1]) if found else default


def read_rows(path: Path) -> tuple[Row, ...]:
    """Every row of a CSV file with the columns of `Row`. Raises UserError for another file, naming the line."""
    names = {field.name for field in fields(Row)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacking = sorted(names - set(reader.fieldnames or ()))
            if lacking:
                raise UserError([Problem(f"lacks the columns {', '.join(lacking)}", path=str(path))])
            rows = tuple(Row(**{name: record[name] or "" for name in names}) for record in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError([Problem(f"cannot be read: {error}", path=str(path))]) from None
    for line, row in enumerate(rows, start=2):
        try:
            float(row.value)
        except ValueError:
            raise UserError([Problem(f"line {line}: '{row.value}' is no number", path=str(path))]) from None
    return rows


@lru_cache(maxsize=1)
def published_rows() -> tuple[Row, ...]:
    """The packaged rows."""
    return read_rows(PUBLISHED)
