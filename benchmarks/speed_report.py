"""Where and when the speed was measured, and the tables that say how it turned out."""

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import l4spec

TO_REACH: Mapping[tuple[str, str, str], float] = {
    ("16-experts", "fp32", "prefill"): 6,
    ("128-experts", "fp32", "prefill"): 20,
    ("16-experts", "fp32", "decode 1"): 1.5,
    ("128-experts", "fp32", "decode 1"): 10,
}
"""Times faster than transformers."""
MATMUL_SHARE, STREAM_SHARE = 0.70, 0.60
"""Shares of the machine's own limits to reach, by prefill and by a decode step."""


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
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_report(report: Mapping[str, Any]) -> None:
    """The tables as Markdown."""
    print(", ".join(f"{name} {value}" for name, value in report["conditions"].items() if value is not None), end="\n\n")
    rows = [row for result in report["results"] for row in _rows(result)]
    head = ("model", "dtype", "what", "ours, ms", "transformers, ms", "times faster", "of the machine's limit")
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True), end="\n\n")
    print(tabulate([_limits(result) for result in report["results"]], _LIMIT_HEAD, tablefmt="github"), end="\n\n")
    contexts = [
        (dtype, row["context"], 1e6 * row["read_seconds_per_token"], 1e3 * row["step_seconds"], row["step_over_first"])
        for dtype, found in report["contexts"].items()
        for row in found
    ]
    context_head = ("dtype", "context", "reading, us a token", "decode step, ms", "step over the first's")
    print(tabulate(contexts, context_head, tablefmt="github", floatfmt=("", "", ".1f", ".3f", ".2f")))


_LIMIT_HEAD = (
    "model",
    "dtype",
    "plain matmuls, GFLOP/s",
    "streaming, GB/s",
    "streaming by our product, GB/s",
    "largest difference of logits",
)


def _limits(result: Mapping[str, Any]) -> tuple[str, ...]:
    streams = (f"{result[key] / 1e9:.1f}" for key in ("streamed_bytes_per_second", "our_streamed_bytes_per_second"))
    matmuls = f"{result['matmul_flops_per_second'] / 1e9:.0f}"
    return result["model"], result["dtype"], matmuls, *streams, f"{result['logit_difference']:.1e}"


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    found = []
    for name in ("prefill", "prefill, last logits", "decode 1", "decode 8"):
        row = result[name]
        wanted = TO_REACH.get((result["model"], result["dtype"], name))
        faster = f"{row['times_faster']:.1f}" if "times_faster" in row else ""
        faster += f" (to reach: {wanted:g})" if wanted else ""
        times = (f"{1e3 * row[key]:.2f}" if key in row else "" for key in ("seconds", "transformers_seconds"))
        found.append((result["model"], result["dtype"], name, *times, faster, _share(row)))
    return found


def _share(row: Mapping[str, float]) -> str:
    """The share of the limit that applies, with the one to reach."""
    if "of_matmul_rate" in row:
        return f"{row['of_matmul_rate']:.0%} of matmuls (to reach: {MATMUL_SHARE:.0%})"
    if "of_stream_rate" in row:
        return f"{row['of_stream_rate']:.0%} of streaming (to reach: {STREAM_SHARE:.0%})"
    return ""
