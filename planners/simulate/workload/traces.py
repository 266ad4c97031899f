"""Traces that people publish, read as streams of entries: when, how long, which prefix.

    azure      TIMESTAMP,ContextTokens,GeneratedTokens (Azure/AzurePublicDataset, LLM inference 2023 and 2024)
    mooncake   JSON lines: timestamp in ms, input_length, output_length, hash_ids of 512 tokens (kvcache-ai/Mooncake)
    agentic    sessions with think times and ranges of hashes of 64 tokens (CSV: trace,path,t,…,hash_ranges)
    vllm       one JSON document of `vllm bench serve --save-result --save-detailed`
    blis       arrival_time,request_id,model,"[prompt ids]","[answer ids]" (inference-sim/inference-sim)
    requests   JSON lines or CSV with an arrival, input_toks and output_toks (casys-kaist/LLMServingSim)

A malformed line is refused with its number.
"""

import csv
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, UserError
from planners.simulate.times.kernel_tables import opened

NS = 1_000_000_000
MOST_LINE, MOST_DOCUMENT = 64 << 20, 1 << 30
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, zlib.error)
"""Exceptions of reading a file, or a compressed one."""
MOONCAKE_BLOCK, AGENTIC_BLOCK = 512, 64
MOST_BACK = 10 * NS
"""Nanoseconds that a request may stand below one that arrived later."""


@dataclass(slots=True)
class TraceEntry:
    """One request of a trace. `runs` are ids of the prompt's hashed blocks, `hash_tokens` tokens each.

    `arrival` counts nanoseconds from the first request. In a session, `after` is the position of the request whose end
    starts the wait of `think` nanoseconds; None for one that starts with its session.
    """

    arrival: int
    prompt: int
    output: int
    runs: tuple[tuple[int, int], ...] = ()
    hash_tokens: int = 0
    session: str = ""
    position: int = 0
    after: int | None = None
    think: int = 0
    measured: tuple[int, int] | None = None
    """Nanoseconds to the first and to the last token, where the file is of a real run."""


Reader = Callable[[Path], Iterator[TraceEntry]]


def read_trace(path: Path, form: str) -> Iterator[TraceEntry]:
    """The entries of a trace in the order of the file. Raises UserError for an invalid trace or line."""
    if form == "auto":
        form = format_by_first_line(path)
    return _in_order(path, READERS[form](path))


def _in_order(path: Path, entries: Iterator[TraceEntry]) -> Iterator[TraceEntry]:
    """The entries, arriving from 0 on and none before the last. Raises UserError where one is out of order.

    Logs of servers are out of order by moments: such a request arrives with the one above it.
    """
    latest = 0
    for number, entry in enumerate(entries, 1):
        if entry.arrival < latest - MOST_BACK:
            message = f"request {number:,} arrives {(latest - entry.arrival) / NS:,.6g} s before one above it"
            raise UserError([Problem(message, place=Place(str(path)), hint="sort the trace by arrival")])
        entry.arrival = latest = max(latest, entry.arrival)
        yield entry


def format_by_first_line(path: Path) -> str:
    """The format of a trace by how it begins. Raises UserError where nothing is known to begin so."""
    try:
        with opened(path) as file:
            first = file.readline(1 << 20).strip()
    except UNREADABLE as error:
        raise _refused(path, 1, f"cannot read the trace: {_first_line(error)}") from None
    for form, words in (
        ("azure", ("ContextTokens", "GeneratedTokens")),
        ("agentic", ("trace,path,", "hash_ranges")),
        ("requests", ("input_toks", "output_toks")),
        ("mooncake", ('"input_length"', '"output_length"')),
        ("blis", ("arrival_time", "request_id")),
    ):
        if all(word in first for word in words):
            return form
    if first.startswith("{"):
        return "vllm"
    raise _refused(path, 1, f"no known trace begins with {first[:60]!r}", f"one of: {', '.join(READERS)}")


def _refused(path: Path, line: int, message: str, hint: str = "") -> UserError:
    return UserError([Problem(message, place=Place(str(path), line), hint=hint)])


def _whole(path: Path, line: int, name: str, value: Any, least: int = 0) -> int:
    """A number of tokens or a time from a field. Raises UserError with the line."""
    try:
        number = int(value) if not isinstance(value, float) else round(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not least <= number < 1 << 62 or isinstance(value, bool):
        raise _refused(path, line, f"expected {name} of at least {least}, found {str(value)[:40]!r}")
    return number


def _seconds(path: Path, line: int, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not 0 <= number < 1e12:
        raise _refused(path, line, f"expected {name} in seconds, found {str(value)[:40]!r}")
    return number


def _text_lines(path: Path, most: int = MOST_LINE) -> Iterator[str]:
    """The lines of a file, each shorter than `most`. Raises UserError with the line that cannot be read."""
    number = 0
    try:
        with opened(path) as file:
            while line := file.readline(most):
                number += 1
                if len(line) == most:
                    raise _refused(path, number, f"a line of more than {most >> 20} MiB")
                yield line
    except UNREADABLE as error:
        raise _refused(path, number + 1, f"cannot read the trace: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:80]


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row of a CSV file, its head too."""
    csv.field_size_limit(MOST_LINE)
    reader = csv.reader(_text_lines(path))
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise _refused(path, reader.line_num + 1, f"no line of a CSV file: {_first_line(error)}") from None


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields of each row of a CSV file that has the columns."""
    rows = _csv_rows(path)
    _, names = next(rows, (1, []))
    if missing := [name for name in columns if name not in names]:
        raise _refused(path, 1, f"missing columns: {', '.join(missing)}")
    for line, row in rows:
        if len(row) != len(names):
            raise _refused(path, line, f"expected {len(names)} fields, found {len(row)}")
        yield line, dict(zip(names, row, strict=True))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a file of JSON lines."""
    for number, line in enumerate(_text_lines(path), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _refused(path, number, f"no JSON: {_first_line(error)}") from None
        if not isinstance(fields, dict):
            raise _refused(path, number, "expected an object with the fields of a request")
        yield number, fields


def _azure(path: Path) -> Iterator[TraceEntry]:
    begin: int | None = None
    for line, row in _rows(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        time = _timestamp(path, line, row["TIMESTAMP"])
        begin = time if begin is None else begin
        prompt = _whole(path, line, "ContextTokens", row["ContextTokens"])
        output = _whole(path, line, "GeneratedTokens", row["GeneratedTokens"])
        yield TraceEntry(time - begin, max(prompt, 1), max(output, 1))


def _timestamp(path: Path, line: int, text: str) -> int:
    """Nanoseconds from 1970 of a date and time, in UTC unless it names another zone; digits below are dropped."""
    parts = re.fullmatch(r"(.{19})(?:\.(\d{1,20}))?(Z|[+-]\d\d(?::?\d\d)?)?", text.strip())
    try:
        time = datetime.fromisoformat(parts[1] + (parts[3] or "+00:00")) if parts else None
    except ValueError:
        time = None
    if parts is None or time is None:
        raise _refused(path, line, f"expected a time like 2023-11-16 18:17:03.97, found {text[:40]!r}")
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * NS + int((parts[2] or "0")[:9].ljust(9, "0"))


def _mooncake(path: Path) -> Iterator[TraceEntry]:
    first: int | None = None
    for line, fields in _objects(path):
        for name in ("timestamp", "input_length", "output_length"):
            if name not in fields:
                raise _refused(path, line, f"missing field {name}")
        ids = fields.get("hash_ids", [])
        if not isinstance(ids, list) or not all(type(number) is int and 0 <= number < 1 << 62 for number in ids):
            raise _refused(path, line, "expected hash_ids as a list of whole numbers")
        time = _whole(path, line, "timestamp", fields["timestamp"]) * 1_000_000
        first = time if first is None else first
        yield TraceEntry(
            time - first,
            _whole(path, line, "input_length", fields["input_length"], 1),
            max(_whole(path, line, "output_length", fields["output_length"]), 1),
            runs_of(ids),
            MOONCAKE_BLOCK,
        )


def runs_of(ids: list[int]) -> tuple[tuple[int, int], ...]:
    """Consecutive ids as runs, stop excluded."""
    runs: list[tuple[int, int]] = []
    for number in ids:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return tuple(runs)


def _agentic(path: Path) -> Iterator[TraceEntry]:
    """Sessions whose requests follow each other; a sub-agent's begin when the request before its number has ended."""
    columns = ("trace", "path", "input_tokens", "output_tokens", "think_time", "hash_ranges")
    session, base, count = "", 0, 0
    last: dict[str, int] = {}
    for line, row in _rows(path, columns):
        if row["trace"] != session:
            session, count, last = row["trace"], 0, {}
            base += 1
        chain_of = row["path"].rpartition("/")[0]
        after = last.get(chain_of, last.get("") if chain_of else None)
        think = row["think_time"]
        yield TraceEntry(
            0,
            _whole(path, line, "input_tokens", row["input_tokens"], 1),
            max(_whole(path, line, "output_tokens", row["output_tokens"]), 1),
            _ranges(path, line, row["hash_ranges"], base << 32),
            AGENTIC_BLOCK,
            session,
            count,
            after,
            round(_seconds(path, line, "think_time", think) * NS) if think else 0,
        )
        last[chain_of] = count
        count += 1


def _ranges(path: Path, line: int, text: str, base: int) -> tuple[tuple[int, int], ...]:
    runs = []
    for part in text.split():
        first, _, end = part.partition("-")
        start = _whole(path, line, "a range of hashes", first)
        stop = _whole(path, line, "a range of hashes", end or first, start) + 1
        runs.append((base + start, base + stop))
    return tuple(runs)


def _vllm(path: Path) -> Iterator[TraceEntry]:
    try:
        fields = json.loads("".join(_text_lines(path, MOST_DOCUMENT)))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise _refused(path, 1, f"no JSON: {_first_line(error)}") from None
    if not isinstance(fields, dict):
        raise _refused(path, 1, "expected an object with the columns of a benchmark")
    columns = [fields.get(name) for name in ("input_lens", "output_lens", "start_times")]
    if not all(isinstance(column, list) for column in columns) or len({len(column or []) for column in columns}) != 1:
        hint = "run `vllm bench serve --save-result --save-detailed` of a version that writes start_times"
        raise _refused(path, 1, "expected lists input_lens, output_lens and start_times of one length", hint)
    times = _vllm_times(path, fields, len(columns[0] or []))
    prompts, outputs, starts = (column or [] for column in columns)
    starts = [_seconds(path, 1, "start_times", start) for start in starts]
    rows = sorted(zip(prompts, outputs, starts, times, strict=True), key=lambda row: row[2])
    first = rows[0][2] if rows else 0.0
    for prompt, output, start, measured in rows:
        arrival = round((start - first) * NS)
        entry = TraceEntry(
            arrival, _whole(path, 1, "input_lens", prompt, 1), max(_whole(path, 1, "output_lens", output), 1)
        )
        entry.measured = measured
        yield entry


def _vllm_times(path: Path, fields: dict[str, Any], count: int) -> list[tuple[int, int] | None]:
    """Time to the first and to the last token of each request, from `ttfts` and `itls`; None if they are not."""
    ttfts, itls = fields.get("ttfts"), fields.get("itls")
    if not isinstance(ttfts, list) or not isinstance(itls, list) or not len(ttfts) == len(itls) == count:
        return [None] * count
    times: list[tuple[int, int] | None] = []
    for ttft, gaps in zip(ttfts, itls, strict=True):
        first = _seconds(path, 1, "ttfts", ttft)
        rest = sum(_seconds(path, 1, "itls", gap) for gap in (gaps if isinstance(gaps, list) else ()))
        times.append((max(round(first * NS), 1), max(round((first + rest) * NS), 1)))
    return times


def _blis(path: Path) -> Iterator[TraceEntry]:
    """Prompts by their token ids: equal beginnings are recognized by blocks of 16."""
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    first: float | None = None
    rows = _csv_rows(path)
    head = next(rows, None)
    if head is not None and _is_number(head[1][0]):
        rows = chain([head], rows)
    for line, row in rows:
        if len(row) < 5:
            raise _refused(path, line, f"expected 5 fields, found {len(row)}")
        time = _seconds(path, line, "arrival_time", row[0])
        first = time if first is None else first
        prompt, answer = (_token_ids(path, line, text) for text in row[3:5])
        ids, before = [], -1
        for start in range(0, len(prompt) - 15, 16):
            before = numbers.setdefault((before, tuple(prompt[start : start + 16])), len(numbers))
            ids.append(before)
        yield TraceEntry(round((time - first) * NS), max(len(prompt), 1), max(len(answer), 1), runs_of(ids), 16)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _token_ids(path: Path, line: int, text: str) -> list[int]:
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(number, int) for number in ids):
        raise _refused(path, line, f"expected a list of token ids, found {text[:40]!r}")
    return ids


def _requests(path: Path) -> Iterator[TraceEntry]:
    """Arrivals in nanoseconds (`arrival_time_ns`) or seconds, counted from the first.

    If the engine logged the time of queueing (`queued_ts`), arrivals are those times, since its latencies count from
    them.
    """
    as_json = next(_text_lines(path), "").startswith("{")
    first: int | None = None
    for line, row in _objects(path) if as_json else _rows(path, ("input_toks", "output_toks")):
        if "arrival_time_ns" in row:
            time = _whole(path, line, "arrival_time_ns", row["arrival_time_ns"])
        else:
            name = "queued_ts" if "queued_ts" in row else "arrival_time"
            time = round(_seconds(path, line, name, row.get(name)) * NS)
        first = time if first is None else first
        prompt = _whole(path, line, "input_toks", row.get("input_toks"), 1)
        entry = TraceEntry(time - first, prompt, _whole(path, line, "output_toks", row.get("output_toks"), 1))
        if "first_token_ts" in row and "last_token_ts" in row:
            ends = (round(_seconds(path, line, name, row[name]) * NS) for name in ("first_token_ts", "last_token_ts"))
            ttft, e2e = (max(end - time, 1) for end in ends)
            entry.measured = ttft, max(e2e, ttft)
        yield entry


READERS: dict[str, Reader] = {
    "azure": _azure,
    "mooncake": _mooncake,
    "agentic": _agentic,
    "vllm": _vllm,
    "blis": _blis,
    "requests": _requests,
}

__all__ = ["READERS", "TraceEntry", "format_by_first_line", "read_trace", "runs_of"]
