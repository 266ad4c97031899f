"""Conditions of the speed measurements, and the tables of their results."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import l4spec

TO_REACH: Mapping[tuple[str, str, str], float] = {
    ("16-experts", "fp32", "prefill"): 6,
    ("128-experts", "fp32", "prefill"): 20,
    ("16-experts", "fp32", "decode-1"): 1.5,
    ("128-experts", "fp32", "decode-1"): 10,
    ("16-experts", "fp32", "decode-1, compiled"): 1.5,
    ("128-experts", "fp32", "decode-1, compiled"): 10,
    ("16-experts", "fp32", "train"): 4,
    ("128-experts", "fp32", "train"): 15,
    ("128-experts-4-layers", "fp32", "train"): 15,
    ("128-experts-4-layers", "fp32", "train, freed memory kept"): 15,
}
"""Times faster than transformers."""
MATMUL_SHARE, TRAIN_SHARE, STREAM_SHARE = 0.70, 0.60, 0.60
"""Shares of the machine's own limits to reach, by prefill, by a training step and by a decode step."""


def conditions() -> dict[str, Any]:
    """Date, versions, and the machine with how busy it was."""
    import transformers

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "l4spec": l4spec.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def load_average() -> float | None:
    """Number of processes ready to run, averaged over the last minute; None if the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def add_to(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Join a report with the one in the file, newer results instead of older ones of the same, and write it."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"results": []}
    results = {_key(result): result for result in (*kept["results"], *report["results"])}
    joined = report | {"results": [results[key] for key in sorted(results)]}
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(joined, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return joined


def median_results(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Of each result the run with the median share of the machine's limit (the lower one of two), with all shares."""
    medians = []
    for results in zip(*runs, strict=True):
        ranked = sorted(results, key=_share)
        medians.append({**ranked[(len(ranked) - 1) // 2], "shares_of_processes": [_share(result) for result in ranked]})
    return medians


def _share(result: Mapping[str, Any]) -> float:
    names = ("of_matmul_rate", "of_stream_rate", _GROWTH)
    share: float = next(result[name] for name in names if name in result)
    return share


def _key(result: Mapping[str, Any]) -> tuple[str, str, str]:
    return result["model"], result["dtype"], result["part"]


def print_report(report: Mapping[str, Any]) -> None:
    """The tables as Markdown."""
    print(", ".join(f"{name} {value}" for name, value in report["conditions"].items() if value is not None), end="\n\n")
    results = [result for result in report["results"] if "seconds" in result]
    print(tabulate([_row(result) for result in results], _HEAD, tablefmt="github", disable_numparse=True), end="\n\n")
    rows = sorted((row for row in report["results"] if "context" in row), key=lambda row: row["context"])
    contexts = [
        (row["dtype"], row["context"], 1e6 * row["read_seconds_per_token"], 1e3 * row["step_seconds"], row[_GROWTH])
        for row in rows
    ]
    print(tabulate(contexts, _CONTEXT_HEAD, tablefmt="github", floatfmt=("", "", ".1f", ".3f", ".2f")))


_HEAD = ("model", "dtype", "what", "ours, ms", "transformers, ms", "times faster", "the machine's limit", "share of it")
_GROWTH = "step_over_first"
_CONTEXT_HEAD = ("dtype", "context", "reading, us a token", "decode step, ms", "step over the first's")


def _row(result: Mapping[str, Any]) -> tuple[str, ...]:
    goal = TO_REACH.get(_key(result))
    faster = f"{result['times_faster']:.1f}" + (f" (to reach: {goal:g})" if goal else "")
    times = (f"{1e3 * result[key]:.2f}" for key in ("seconds", "transformers_seconds"))
    return (*_key(result), *times, faster, *_limit(result))


def _limit(result: Mapping[str, Any]) -> tuple[str, str]:
    """The limit that applies, and the share of it with the one to reach."""
    if "of_matmul_rate" in result:
        rate = f"{result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s in plain matmuls"
        goal = TRAIN_SHARE if result["part"].startswith("train") else MATMUL_SHARE
        return rate, f"{result['of_matmul_rate']:.0%} (to reach: {goal:.0%})"
    rates = ", ".join(f"{rate / 1e9:.1f} GB/s by {name}" for name, rate in result["streamed_bytes_per_second"].items())
    return rates, f"{result['of_stream_rate']:.0%} (to reach: {STREAM_SHARE:.0%})"


if __name__ == "__main__":
    print_report(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
