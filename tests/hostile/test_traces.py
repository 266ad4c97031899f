"""A trace is read, or refused in one line with the number of its own line, whatever stands in it."""

import gzip
import json
import os
import tracemalloc
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given

from l4spec.errors import UserError
from planners.simulate.workload.traces import READERS, TraceEntry, read_trace
from tests.hostile.draws import RANDOMS, draws, size

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 1e308, float("inf"), float("nan"), 10**30, 10**400, "", "x", "inf", "nan", "9" * 5000),
    *("-0", "1e400", "\0", "\u2028", '"', "[1", "0-" + "9" * 30, [], {}, [[]], [None], [1e400], "x" * 200_000),
)
AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
AGENTIC = ["trace", "path", "t", "input_tokens", "output_tokens", "think_time", "hash_ranges"]
BLIS = ["arrival_time", "request_id", "model", "prompt", "answer"]


def rows(random: Random, form: str) -> list[dict[str, Any]]:
    """Good rows of a format."""
    count = size(random, 20)
    makers: dict[str, Any] = {
        "azure": lambda i: dict(zip(AZURE, (f"2023-11-16 18:15:{i % 60:02d}.68", 10 + i, i), strict=True)),
        "agentic": lambda i: dict(zip(AGENTIC, (f"s{i // 3}", f"{i % 3}", i, 9, 3, 0.5, "0-3 7"), strict=True)),
        "blis": lambda i: dict(zip(BLIS, (i / 2, f"r{i}", "m", "[1, 2]", "[3]"), strict=True)),
        "mooncake": lambda i: {"timestamp": i, "input_length": 9, "output_length": 3, "hash_ids": [0, 1]},
        "requests": lambda i: {"arrival_time_ns": i, "input_toks": 9, "output_toks": 3},
    }
    return [makers[form](i) for i in range(count)]


def vllm(random: Random) -> str:
    """One document of a benchmark, with a column or a cell that is odd."""
    count = size(random, 20)
    names = ("input_lens", "output_lens", "start_times", "ttfts")
    data: dict[str, Any] = {name: [1.0 + i for i in range(count)] for name in names}
    data["itls"] = [[0.1]] * count
    name = random.choice(sorted(data))
    if random.random() < 0.7:
        data[name] = [*data[name]]
        data[name][random.randrange(count)] = random.choice(ODD)
    else:
        data[name] = random.choice(ODD)
    return json.dumps(data)


def written(random: Random, form: str) -> str:
    """The text of a trace in which one value is odd, missing or too many."""
    if form == "vllm":
        return vllm(random)
    table = rows(random, form)
    row = random.choice(table)
    key = random.choice(sorted(row))
    match random.choice(["odd", "odd", "odd", "gone", "more"]):
        case "odd":
            row[key] = random.choice(ODD)
        case "gone":
            del row[key]
        case _:
            row["more"] = random.choice(ODD)
    if form in ("mooncake", "requests"):
        return "".join(json.dumps(row) + "\n" for row in table)
    head = ",".join(table[0]) + "\n" if form != "blis" else ""
    cells = [[str(cell) if "," not in str(cell) else f'"{cell}"' for cell in row.values()] for row in table]
    return head + "".join(",".join(line) + "\n" for line in cells)


def spoilt(random: Random, content: bytes) -> bytes:
    """The bytes as they are, or some of them others, gone, or far too many."""
    at = random.randrange(len(content) or 1)
    return random.choice(
        [
            content, content, content, content[:at], content[:at] + random.randbytes(9) + content[at:],
            content[:at] + b"[" * size(random, 100_000), content[:at] + b"\0" + content[at + 1 :],
            content[:at] + b'"' + content[at:],
        ]
    )  # fmt: skip


@draws(300)
@given(RANDOMS)
def test_a_trace_is_read_or_refused_with_the_line(folder: Path, random: Random) -> None:
    form = random.choice(sorted(READERS))
    packed = random.random() < 0.2
    path = folder / ("trace.gz" if packed else "trace")
    path.unlink(missing_ok=True)
    content = spoilt(random, written(random, form).encode("utf-8", "surrogatepass"))
    if random.random() < 0.03:
        os.mkfifo(path)
    else:
        path.write_bytes(spoilt(random, gzip.compress(content)) if packed else content)
    tracemalloc.start()
    entries, refusal = read(path, random.choice(["auto", form]))
    if refusal:
        assert len(refusal.splitlines()) == 1
        assert path.name in refusal
        assert len(refusal) < 1000
    for entry in entries:
        assert 0 <= entry.arrival < 1 << 90, entry
        assert 1 <= entry.prompt < 1 << 62, entry
        assert 1 <= entry.output < 1 << 62, entry
        assert all(0 <= start < stop for start, stop in entry.runs), entry
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    path.unlink()


def read(path: Path, form: str) -> tuple[list[TraceEntry], str]:
    """The entries of a trace, or why it is refused."""
    try:
        return list(islice(read_trace(path, form), 1000)), ""
    except UserError as error:
        return [], str(error)
