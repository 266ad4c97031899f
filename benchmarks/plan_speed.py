"""Time of plans: cold from the command line, and ten thousand of them through the API.

    python benchmarks/plan_speed.py [--runs 15] [--json]

Cold starts are medians over interleaved runs, each a fresh process with its bytecode in place, of processor time, user
and system: `import torch` as the yardstick, the largest shipped model, a miniature, `--help`, `ls` and `--version`.

The 10,000 plans are specs x layouts x contexts, all different, in processor time of one core; memory is what Python has
allocated and the system has resident, after a first thousand and at the end.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from planners import plan

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "import sys; from l4spec.cli import main; sys.exit(main())"]
COLD = {
    "import torch": [sys.executable, "-c", "import torch"],
    "its libraries": [
        sys.executable,
        "-c",
        "import typer, yaml; from pydantic import BaseModel, Field, model_validator",
    ],
    "plan behemoth": [*COMMAND, "plan", "specs/behemoth.yaml", "--gpus", "8xH100"],
    "plan tiny/scout": [*COMMAND, "plan", "specs/tiny/scout.yaml", "--gpus", "8xH100"],
    "--help": [*COMMAND, "--help"],
    "ls": [*COMMAND, "ls"],
    "--version": [*COMMAND, "--version"],
}
TO_REACH = {"plan behemoth": 0.20, "--help": 0.16, "ls": 0.16, "--version": 0.16}
"""Shares of the processor time of `import torch`."""
FITS, FITS_NOT = 0, 3
SPECS = ("scout", "maverick", "behemoth", "llama-guard-4-12b", "mobilellm-r1-950m")
LAYOUTS = ({"tp": 8}, {"tp": 4, "pp": 2}, {"tp": 2, "pp": 4}, {"tp": 1, "pp": 8}, {"tp": 2, "dp": 4})
NUM_PLANS, WARM_UP = 10_000, 1_000
MIB = 1 << 20


def cold_starts(runs: int) -> dict[str, float]:
    """Median processor seconds of each command, run in turn so that a noisy moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in COLD}
    with TemporaryDirectory() as compiled:
        for run in range(runs + 1):
            for name, command in COLD.items():
                passed = _timed(name, command, compiled)
                if run:  # the first round compiles, as an installer does, and fills the file cache
                    seconds[name].append(passed)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _timed(name: str, command: list[str], compiled: str) -> float:
    """Processor seconds of one run, with byte code in the folder `compiled` whatever the caller's environment says."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"PYTHONPYCACHEPREFIX": compiled},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode not in (FITS, FITS_NOT):
        raise SystemExit(f"{name}: exit code {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def different_plans() -> Iterator[tuple[LayerGraph, dict[str, int], int]]:
    """Spec, layout and context of one plan after another, no two the same."""
    graphs = [l4spec.compile(l4spec.load(name)) for name in SPECS]
    pairs = [(graph, layout) for graph in graphs for layout in LAYOUTS if _allows(graph, layout)]
    for number, (graph, layout) in enumerate(cycle(pairs)):
        yield graph, layout, 1 + number // len(pairs)


def _allows(graph: LayerGraph, layout: dict[str, int]) -> bool:
    try:
        plan(graph, gpus="8xH100", **layout)
    except l4spec.UserError:
        return False
    return True


def many_plans() -> dict[str, float]:
    """Processor seconds for NUM_PLANS plans, and how much memory the last nine thousand of them added."""
    work = different_plans()
    start = time.process_time()
    _plan_all(islice(work, WARM_UP))
    resident = _resident_bytes()
    _plan_all(islice(work, NUM_PLANS - WARM_UP))
    seconds, grown = time.process_time() - start, _resident_bytes() - resident
    return {"seconds": seconds, "resident_growth_bytes": grown, "traced_growth_bytes": _traced_growth(work)}


def _plan_all(work: Iterator[tuple[LayerGraph, dict[str, int], int]]) -> None:
    for graph, layout, context in work:
        plan(graph, gpus="8xH100", context=context, **layout)


def _resident_bytes() -> int:
    """Resident memory now, or where the system does not say, the most so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _traced_growth(work: Iterator[tuple[LayerGraph, dict[str, int], int]]) -> int:
    """Bytes that a thousand more plans leave allocated, caches being full by now."""
    tracemalloc.start()
    _plan_all(islice(work, WARM_UP))
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    _plan_all(islice(work, WARM_UP))
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15, help="cold starts of each command")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    cold, many = cold_starts(options.runs), many_plans()
    ratios = {name: seconds / cold["import torch"] for name, seconds in cold.items()}
    if options.json:
        print(json.dumps({"cold_seconds": cold, "ratios": ratios, "many": many, "num_plans": NUM_PLANS}))
        return
    for name, seconds in cold.items():
        goal = f"  to reach: at most {TO_REACH[name]:.2f}" if name in TO_REACH else ""
        print(f"{name:24}{seconds:9.3f} s of processor time{ratios[name]:9.3f} of import torch{goal}")
    print(f"{f'{NUM_PLANS:,} plans':34}{many['seconds']:9.2f} s of processor time  to reach: at most 4")
    print(f"{'resident memory grown by':34}{many['resident_growth_bytes'] / MIB:9.2f} MiB")
    print(f"{'allocated memory grown by':34}{many['traced_growth_bytes'] / MIB:9.2f} MiB")


if __name__ == "__main__":
    main()
