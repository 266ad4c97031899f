"""Tables of measured kernels, read from CSV files and interpolated.

A set of tables is several files whose names share a beginning, `PREFIX__tpN__dense.csv` and so on (`.gz` is unpacked):

    dense         layer,tokens,time_us               an operation of one layer, by new tokens of the step
    per_sequence  layer,sequences,time_us            what runs once a sequence: head and sampler
    attention     prefill_chunk,kv_prefill,n_decode,kv_decode,time_us      one layer's attention kernel
    moe           tokens,activated_experts,time_us   one routed layer, by the experts whose weights it reads

Times are microseconds. The format is that of LLMServingSim's profiler (casys-kaist/LLMServingSim, profiler/).
"""

import csv
import gzip
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from l4spec.errors import Place, Problem, UserError
from l4spec.spec.files import require_regular

MOST_ROWS = 1_000_000
_ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")


@dataclass(frozen=True, slots=True)
class Curve:
    """Times at some points, linear between them and beyond the last two; constant below the first."""

    points: tuple[float, ...]
    times: tuple[float, ...]

    def at(self, x: float) -> float:
        """The interpolated time."""
        points, times = self.points, self.times
        if x <= points[0] or len(points) == 1:
            return times[0]
        i = min(bisect_right(points, x), len(points) - 1)
        x0, x1 = points[i - 1], points[i]
        return times[i - 1] + (times[i] - times[i - 1]) * (x - x0) / (x1 - x0)


class Grid:
    """Times over several axes, multilinear between points and beyond the last two; constant below the first."""

    def __init__(self, rows: Mapping[tuple[float, ...], float]) -> None:
        self.rows = rows
        dims = len(next(iter(rows)))
        self.axes = [sorted({key[dim] for key in rows}) for dim in range(dims)]

    def at(self, point: Sequence[float]) -> float:
        """The interpolated time; corners without a measurement are left out and the others reweighted."""
        corners: list[tuple[tuple[float, ...], float]] = [((), 1.0)]
        for axis, x in zip(self.axes, point, strict=True):
            corners = [
                ((*key, value), weight * share) for key, weight in corners for value, share in _neighbours(axis, x)
            ]
        known = [(self.rows[key], weight) for key, weight in corners if key in self.rows]
        total = sum(weight for _, weight in known)
        if not known or abs(total) < 1e-9:
            return self._nearest(point)
        return sum(time * weight for time, weight in known) / total

    def _nearest(self, point: Sequence[float]) -> float:
        return min(self.rows.items(), key=lambda row: sum(abs(a - b) for a, b in zip(row[0], point, strict=True)))[1]


def _neighbours(axis: list[float], x: float) -> list[tuple[float, float]]:
    """The points around `x` on an axis and their weights; a weight is negative beyond the last point."""
    if x <= axis[0] or len(axis) == 1:
        return [(axis[0], 1.0)]
    i = min(bisect_right(axis, x), len(axis) - 1)
    share = (x - axis[i - 1]) / (axis[i] - axis[i - 1])
    if share == 0.0:
        return [(axis[i - 1], 1.0)]
    if share == 1.0:
        return [(axis[i], 1.0)]
    return [(axis[i - 1], 1 - share), (axis[i], share)]


@dataclass(frozen=True, slots=True)
class KernelTables:
    """The tables of one model on one device at one tensor-parallel degree."""

    dense: Mapping[str, Curve]
    per_sequence: Mapping[str, Curve]
    decode: Grid
    prefill: Grid
    mixed: Grid
    moe: Grid | None
    files: tuple[str, ...]


def read_kernels(prefix: Path, tp: int) -> KernelTables:
    """The tables whose files begin with `prefix`, at tensor-parallel degree `tp`.

    Raises UserError for missing files and for malformed lines, with their number.
    """
    dense, sequences = _file(prefix, tp, "dense"), _file(prefix, tp, "per_sequence")
    attention, moe = _file(prefix, tp, "attention"), _file(prefix, tp, "moe")
    problems = [
        Problem(f"no file {prefix.name}__tp{tp}__{name}.csv beside the others", place=Place(str(prefix.parent)))
        for name, file in (("dense", dense), ("per_sequence", sequences), ("attention", attention))
        if file is None
    ]
    if dense is None or sequences is None or attention is None:
        raise UserError(problems)
    rows = {key: time for *point, time in _numbers(attention, _ATTENTION) if (key := tuple(point))}
    return KernelTables(
        dense=_curves(dense, "tokens"),
        per_sequence=_curves(sequences, "sequences"),
        decode=Grid(_slice(rows, chunk=False, decode=True)),
        prefill=Grid(_slice(rows, chunk=True, decode=False)),
        mixed=Grid(_slice(rows, chunk=True, decode=True)),
        moe=None if moe is None else Grid(_moe(moe)),
        files=tuple(path.name for path in (dense, sequences, attention, moe) if path is not None),
    )


def _file(prefix: Path, tp: int, name: str) -> Path | None:
    for suffix in (".csv", ".csv.gz"):
        path = prefix.with_name(f"{prefix.name}__tp{tp}__{name}{suffix}")
        if path.is_file():
            return path
    return None


def _slice(rows: Mapping[tuple[float, ...], float], *, chunk: bool, decode: bool) -> dict[tuple[float, ...], float]:
    """The rows with or without a prompt's chunk, with or without decoding sequences, on axes that are full grids.

    Zero means absence and is no point of an axis, except for a cached length of zero.
    """
    kept: dict[tuple[float, ...], float] = {}
    for (new, cached, sequences, context), time in rows.items():
        if (new > 0) == chunk and (sequences > 0) == decode:
            key = (new, cached) if chunk else ()
            kept[key + ((sequences, context) if decode else ())] = time
    return _full(kept)


def _full(rows: dict[tuple[float, ...], float]) -> dict[tuple[float, ...], float]:
    """Without the points of an axis that were measured in few combinations only."""
    if not rows:
        raise UserError("the attention table has no row of a kind that steps need")
    for dim in range(len(next(iter(rows)))):
        counts: dict[float, int] = {}
        for key in rows:
            counts[key[dim]] = counts.get(key[dim], 0) + 1
        most = max(counts.values())
        rows = {key: time for key, time in rows.items() if counts[key[dim]] * 2 >= most}
    return rows


def _moe(path: Path) -> dict[tuple[float, ...], float]:
    return {
        (experts, tokens): time for tokens, experts, time in _numbers(path, ("tokens", "activated_experts", "time_us"))
    }


def _curves(path: Path, axis: str) -> dict[str, Curve]:
    by_case: dict[str, dict[float, float]] = {}
    for line, row in _lines(path, ("layer", axis, "time_us")):
        layer, x, time = row
        by_case.setdefault(layer, {})[_number(path, line, x)] = _number(path, line, time)
    return {
        layer: Curve(tuple(sorted(points)), tuple(points[x] for x in sorted(points)))
        for layer, points in by_case.items()
    }


def _numbers(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[float, ...]]:
    for line, row in _lines(path, columns):
        yield tuple(_number(path, line, text) for text in row)


def _number(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        raise UserError(
            [Problem(f"expected a number of at least 0, found {text[:40]!r}", place=Place(str(path), line))]
        )
    return value


def opened(path: Path) -> IO[str]:
    """A text file, unpacked where its name ends in `.gz`. Raises UserError for a pipe, a folder or a device."""
    require_regular(path)
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _lines(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row below a header that must be `columns`."""
    with opened(path) as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != columns:
            message = f"expected the columns {','.join(columns)}, found {','.join(header)[:80]}"
            raise UserError([Problem(message, place=Place(str(path), 1))])
        for row in reader:
            if len(row) != len(columns) or reader.line_num > MOST_ROWS:
                message = f"expected {len(columns)} fields, found {len(row)}"
                raise UserError([Problem(message, place=Place(str(path), reader.line_num))])
            yield reader.line_num, row
