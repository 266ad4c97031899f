"""Layout of text in a number of columns: lines are wrapped at words, tables narrowed, and wider ones split into bands.

Nothing is left out, whatever the width. A drawing is never wrapped.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

PIPED = 100
"""Columns of text that no terminal shows."""
LEAST = 40
"""A narrower terminal wraps by itself: words would be torn apart otherwise."""
_GAP = 2
_HEADER = 2
"""Columns that tabulate leaves beside a header."""
_LONGEST_WORD = 28
"""A longer word is cut where its column has no room for it."""


class Cells(NamedTuple):
    """A table's cells; columns are aligned left where `align` has an `l` (the first one by default), else right.

    The last column is wrapped at `wrap` characters, if given; the first `keys` columns name a row.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    wrap: int | None
    keys: int = 1


def wrapped(line: str, width: int | None, hanging: int = 2, *, command: bool = False) -> list[str]:
    """A line in pieces of at most `width` columns; those after the first are indented by `hanging` columns.

    The pieces of a `command` end as a shell continues reading.
    """
    if width is None or len(line) <= width:
        return [line]
    if command:
        *pieces, last = wrapped(line, width - 2, hanging)
        return [*(f"{piece} \\" for piece in pieces), last]
    from textwrap import wrap

    indent = len(line) - len(line.lstrip())
    inner = " " * min(indent + hanging, max(0, width - 20))
    first, _, _ = line.partition(line.lstrip()[:1])
    return wrap(
        line.strip(),
        max(width, 20),
        initial_indent=first,
        subsequent_indent=inner,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def fitted(table: Cells, width: int | None) -> Iterator[Cells]:
    """The table in one piece of at most `width` columns, or in several that repeat the columns that name a row."""
    if width is None:
        yield table._replace(rows=tuple(_narrow(row, _limits(table, None)) for row in table.rows))
        return
    floors = [_floor(table, index) for index in range(len(table.headers))]
    for columns in _bands(floors, width, table.keys):
        band = _part(table, columns)
        limits = _limits(band, width)
        headers = _narrow(band.headers, [limit - _HEADER for limit in limits])
        yield band._replace(headers=headers, rows=tuple(_narrow(row, limits) for row in band.rows))


def _part(table: Cells, columns: Sequence[int]) -> Cells:
    align = "".join(_align(table, index) for index in columns)
    last = len(table.headers) - 1
    return Cells(
        tuple(table.headers[index] for index in columns),
        tuple(tuple(row[index] for index in columns) for row in table.rows),
        align,
        table.wrap if last in columns else None,
    )


def _align(table: Cells, index: int) -> str:
    return table.align.ljust(1, "l")[index : index + 1] or "r"


def _bands(floors: Sequence[int], width: int, keys: int) -> Iterator[list[int]]:
    """Columns by band: as many as fit beside the ones that name a row."""
    band = [*range(keys)]
    for index in range(keys, len(floors)):
        if len(band) > keys and sum(floors[i] + _GAP for i in band) + floors[index] > width:
            yield band
            band = [*range(keys)]
        band.append(index)
    yield band


def _cells(table: Cells, index: int) -> list[str]:
    return [row[index] for row in table.rows]


def _widest(texts: Sequence[str]) -> int:
    return max((len(line) for text in texts for line in text.splitlines()), default=0)


def _longest_word(texts: Sequence[str]) -> int:
    return min(_LONGEST_WORD, max((len(word) for text in texts for word in text.split()), default=0))


def _floor(table: Cells, index: int) -> int:
    """The least width of a column: its longest word; numbers, which are right-aligned, are never broken."""
    cells, header = _cells(table, index), _longest_word([table.headers[index]]) + _HEADER
    return max(header, _longest_word(cells) if _align(table, index) == "l" else _widest(cells))


def _limits(table: Cells, width: int | None) -> list[int]:
    """Columns that each column of a table gets, the widest ones narrowed first."""
    cells = [_widest(_cells(table, index)) for index in range(len(table.headers))]
    if table.wrap is not None and cells:
        cells[-1] = min(cells[-1], table.wrap)
    widths = [max(size, len(header) + _HEADER) for size, header in zip(cells, table.headers, strict=True)]
    if width is None:
        return widths
    floors = [min(_floor(table, index), size) for index, size in enumerate(widths)]
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    while excess > 0 and any(size > floor for size, floor in zip(widths, floors, strict=True)):
        widest = max(range(len(widths)), key=lambda i: widths[i] if widths[i] > floors[i] else -1)
        others = [size for i, size in enumerate(widths) if i != widest and size < widths[widest]]
        step = min(excess, widths[widest] - max(floors[widest], *others, 0))
        widths[widest] -= max(step, 1)
        excess -= max(step, 1)
    return widths


def _narrow(cells: Sequence[str], limits: Sequence[int]) -> tuple[str, ...]:
    return tuple("\n".join(_broken(cell, limit)) for cell, limit in zip(cells, limits, strict=True))


def _broken(cell: str, limit: int) -> list[str]:
    return [piece for line in cell.splitlines() or [""] for piece in _pieces(line, max(limit, 1))]


def _pieces(line: str, limit: int) -> list[str]:
    if len(line) <= limit:
        return [line]
    from textwrap import wrap

    return wrap(line, limit, break_on_hyphens=False) or [""]
