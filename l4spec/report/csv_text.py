"""Rows as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A header, and a line per row; an unknown value is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
