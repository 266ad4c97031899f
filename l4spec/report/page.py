"""A report before it is text or Markdown: titled sections of facts, tables, bars and lines."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

from l4spec.report.columns import Cells, fitted, wrapped

BAR_WIDTH = 36
Tone = Literal["", "good", "bad"]
_MARKUP = re.compile(r"([\\\[\]<>])")
_ASCII = str.maketrans(
    {"×": "x", "–": "-", "—": "-", "…": "...", "·": "-", "█": "#", "▏": "|", "░": ".", "→": "->", "≤": "<=", "Σ": "sum"}
)


class Lines(NamedTuple):
    """Plain sentences, one per line. With a `tone` the first one is a verdict, which a terminal may colour."""

    lines: tuple[str, ...]
    tone: Tone = ""


class Facts(NamedTuple):
    """Labelled values, one per line."""

    rows: tuple[tuple[str, str], ...]


class Table(NamedTuple):
    """A table; columns are aligned right except those whose letter in `align` is `l` (the first one by default).

    On a terminal the last column is wrapped at `wrap` characters, if given, and a table that is too wide is cut into
    bands that repeat the first `keys` columns, which name a row.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str = ""
    wrap: int | None = None
    keys: int = 1


class Bar(NamedTuple):
    """One bar: `part` of the `whole` that all bars of a chart share; `hollow` for free space."""

    label: str
    value: str
    part: int
    hollow: bool = False


class Bars(NamedTuple):
    """Bars on one scale, `whole` at full width."""

    bars: tuple[Bar, ...]
    whole: int


class Code(NamedTuple):
    """Text that is drawn with characters of equal width."""

    lines: tuple[str, ...]


class Figure(NamedTuple):
    """A drawing where there can be one: a template with its values, in words for who cannot see it, and as a table."""

    about: str
    table: Table
    template: str
    values: Mapping[str, Any]


class Details(NamedTuple):
    """A labelled value that expands to its formula, source and error."""

    label: str
    value: str
    blocks: "tuple[Block, ...]"


Block = Lines | Facts | Table | Bars | Code | Figure | Details


class Section(NamedTuple):
    """Blocks under a title; a section with an empty title continues the previous one."""

    title: str
    blocks: tuple[Block, ...]


Page = tuple[Section, ...]


def to_text(page: Page, width: int | None = None, *, colored: bool = False) -> str:
    """The page for a terminal of `width` columns, None for lines of any length; with `colored` verdicts in colour."""
    return "\n\n".join(_section_text(section, width, colored) for section in page) + "\n"


def to_markdown(page: Page) -> str:
    """The page as Markdown."""
    return "\n\n".join(_section_markdown(section) for section in page) + "\n"


def to_ascii(text: str) -> str:
    """The same text for terminals that cannot show more than ASCII."""
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


_COLORS = {"good": "\033[32m", "bad": "\033[31m"}
_PLAIN = "\033[0m"


def _section_text(section: Section, width: int | None, colored: bool) -> str:
    inner = width if width is None or not section.title else width - 2
    body = chain.from_iterable(_block_lines(block, inner, colored) for block in section.blocks)
    if not section.title:
        return "\n".join(body)
    return "\n".join([*wrapped(section.title, width), *(f"  {line}".rstrip() for line in body)])


def _block_lines(block: Block, width: int | None = None, colored: bool = False) -> list[str]:
    if isinstance(block, Table):
        return _table_lines(block, width)
    if isinstance(block, Facts):
        label = max((len(label) for label, _ in block.rows), default=0)
        rows = (
            wrapped(f"{name:<{label}}  {value}", width, label + 2, command=_is_command(value))
            for name, value in block.rows
        )
        return [*chain.from_iterable(rows)]
    if isinstance(block, Bars):
        return _bar_lines(block, width)
    if isinstance(block, Figure):
        return [*wrapped(block.about, width), *_table_lines(block.table, width)]
    if isinstance(block, Details):
        within = None if width is None else width - 4
        lines = chain.from_iterable(_block_lines(each, within) for each in block.blocks)
        title = wrapped(f"{block.label}  {block.value}".rstrip(), width)
        return [*title, *(f"    {line}".rstrip() for line in lines)]
    if isinstance(block, Lines):
        pieces = [wrapped(line, width, 0, command=_is_command(line)) for line in block.lines]
        if colored and block.tone and pieces:
            pieces[0] = [f"{_COLORS[block.tone]}{line}{_PLAIN}" for line in pieces[0]]
        return [*chain.from_iterable(pieces)]
    return list(block.lines)


def _is_command(text: str) -> bool:
    return text.lstrip().startswith("l4spec ")


def _table_lines(table: Table, width: int | None) -> list[str]:
    """A table in as many bands as it takes, an empty line between them."""
    whole = Cells(table.headers, table.rows, table.align, table.wrap, table.keys)
    bands = [_table(Table(band.headers, band.rows, band.align), "simple") for band in fitted(whole, width)]
    return [line for number, band in enumerate(bands) for line in (*([""] if number else []), *band)]


def _section_markdown(section: Section) -> str:
    parts = [f"## {section.title}"] if section.title else []
    return "\n\n".join([*parts, *("\n".join(_block_markdown(block)) for block in section.blocks)])


def _block_markdown(block: Block) -> list[str]:
    if isinstance(block, Table):
        cells = tuple(tuple(map(_markdown, row)) for row in block.rows)
        return _table(block._replace(rows=cells), "github")
    if isinstance(block, Facts):
        return [f"- {_markdown(label)}: {_markdown(value)}" for label, value in block.rows]
    if isinstance(block, Figure):
        return [_markdown(block.about), "", *_block_markdown(block.table)]
    if isinstance(block, Details):
        inner = chain.from_iterable(["", *_block_markdown(each)] for each in block.blocks)
        return [f"**{_markdown(block.label)}** {_markdown(block.value)}".rstrip(), *inner]
    if isinstance(block, Lines):
        lines = [_markdown(line) for line in block.lines]
        return [f"{line}  " for line in lines[:-1]] + lines[-1:]
    return ["```text", *_block_lines(block), "```"]


def _markdown(text: str) -> str:
    """Text escaped for Markdown, so that a user's text starts no link, picture, tag or table cell."""
    return _MARKUP.sub(r"\\\1", " ".join(text.splitlines()))


def _bar_lines(chart: Bars, width: int | None) -> list[str]:
    labels = max((len(bar.label) for bar in chart.bars), default=0)
    values = max((len(bar.value) for bar in chart.bars), default=0)
    room = BAR_WIDTH if width is None else min(BAR_WIDTH, max(8, width - labels - values - 5))
    drawn = [draw_bar(bar.part, chart.whole, room, hollow=bar.hollow) for bar in chart.bars]
    pairs = zip(chart.bars, drawn, strict=True)
    return [f"{bar.label:<{labels}}  {bar.value:>{values}}  {blocks}".rstrip() for bar, blocks in pairs]


def draw_bar(part: int, whole: int, width: int = BAR_WIDTH, *, hollow: bool = False) -> str:
    """`part` of `whole` in `width` blocks; a thin one for a share that rounds to none, `…` after one above 1."""
    if part <= 0 or whole <= 0:
        return ""
    blocks = (2 * part * width + whole) // (2 * whole)
    if blocks > width:
        return "█" * width + "…"
    return ("░" if hollow else "█") * blocks or "▏"


def _table(table: Table, style: str) -> list[str]:
    from tabulate import tabulate

    align = [{"l": "left", "r": "right"}[letter] for letter in table.align.ljust(1, "l")]
    align += ["right"] * (len(table.headers) - len(align))
    rows = [[_cell(cell, style) for cell in row] for row in table.rows]
    text = tabulate(
        rows, headers=table.headers, tablefmt=style, colalign=align if rows else None, disable_numparse=True
    )
    return [line.rstrip() for line in text.splitlines()]


def _cell(text: str, style: str) -> str:
    return text.replace("|", "\\|") if style == "github" else text


def ranges(numbers: Iterable[int], most: int = 5) -> str:
    """Ascending integers as `0–2, 4–6, …, 44–46`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(texts if len(texts) <= most else [*texts[: most - 1], "…", texts[-1]])
