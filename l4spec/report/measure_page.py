"""Report of `l4spec measure`: the verdict first, then a table for each section."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from l4spec.report import quantities
from l4spec.report.page import Lines, Page, Section, Table
from l4spec.verification.expected_times import USUAL_ERROR
from l4spec.verification.measure import MeasuredRow, MeasureReport, Number

MOST_GROUPS = 2
"""Groups of ranks with different numbers up to which a table shows each; of more it shows the one that differs most."""


def measure_page(report: MeasureReport) -> Page:
    """The verdict first, then a table for each section."""
    summary = (_verdict(report), _setting(report), *([report.time_note] if report.time_note else []), *report.left_out)
    sections = [Section("", (Lines(summary),))]
    by_section: dict[str, list[MeasuredRow]] = defaultdict(list)
    for row in report.rows:
        by_section[row.section].append(row)
    for title, rows in by_section.items():
        table = _table(rows) if report.layout is None else _table_of_ranks(rows)
        sections.append(Section(title[0].upper() + title[1:], (table,)))
    return tuple(sections)


def _table(rows: Iterable[MeasuredRow]) -> Table:
    headers = ("", "planned", "measured", "difference", "agrees")
    return Table(headers, tuple((row.name, *_cells(row)) for row in rows), "lrrrl")


def _table_of_ranks(rows: Iterable[MeasuredRow]) -> Table:
    headers = ("", "ranks", "planned", "measured", "difference", "agrees")
    return Table(headers, tuple((row.name, ranks, *_cells(row)) for row, ranks in _few(rows)), "llrrrl")


def _few(rows: Iterable[MeasuredRow]) -> Iterator[tuple[MeasuredRow, str]]:
    """Every row that disagrees; of others of one name that ranks differ much in, the one that is farthest off."""
    by_name: dict[str, list[MeasuredRow]] = defaultdict(list)
    for row in rows:
        by_name[row.name].append(row)
    for alike in by_name.values():
        wrong = [row for row in alike if row.agrees is False]
        if wrong or len(alike) <= MOST_GROUPS:
            yield from ((row, _ranks(row.ranks)) for row in wrong or alike)
        else:
            worst = max(alike, key=lambda row: (abs(row.difference or 0.0), row.measured or 0))
            everyone = tuple(sorted(rank for row in alike for rank in row.ranks))
            yield worst, f"{_ranks(worst.ranks)} (most of {_ranks(everyone)})"


def _ranks(ranks: tuple[int, ...]) -> str:
    """`0-3, 6`; `all` where a number is of all ranks together."""
    if not ranks:
        return "all together"
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _verdict(report: MeasureReport) -> str:
    checked = [row for row in report.rows if row.agrees is not None]
    failed = sum(not row.agrees for row in checked)
    what = report.model if report.layout is None else f"{report.model} on {report.layout}"
    text = f"{what}: {failed} of {len(checked)} rows do NOT agree" if failed else ""
    text = text or f"{what}: plan and run agree in all {len(checked)} rows"
    return text if report.finished else f"{text}; the time limit came before the rest was measured"


def _setting(report: MeasureReport) -> str:
    tiles = f", {report.tiles} image tiles" if report.tiles else ""
    weights = report.quantization or report.dtype
    return (
        f"{report.device}, {weights}, batch {report.batch}: prefill of {quantities.whole(report.prefill)} tokens"
        f"{tiles}, then {report.decode} decode steps; weights are random"
    )


def _cells(row: MeasuredRow) -> tuple[str, ...]:
    change = "-" if row.difference is None or row.law == "shown" else quantities.difference(row.difference)
    verdict = {None: "-", True: "yes", False: "NO"}[row.agrees]
    if row.law == "timed" and row.difference is not None:
        verdict = "as usual" if abs(row.difference) <= USUAL_ERROR else "unusual"
    return _shown(row, row.planned), _shown(row, row.measured), change, verdict


def _shown(row: MeasuredRow, value: Number | None) -> str:
    if value is None:
        return "-"
    if row.unit == "seconds":
        return f"{value * 1000:,.3f} ms"
    if row.unit == "ratio":
        return f"{100 * value:,.3f} %"
    text = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
    return f"{text} B" if row.unit == "bytes" else text
