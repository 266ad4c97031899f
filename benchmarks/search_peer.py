"""One search by l4spec and by NVIDIA's AIConfigurator, in turn; then the plan of what the peer chose beside its times.

    python -m venv peer
    peer/bin/pip install aiconfigurator==0.12.0
    python benchmarks/search_peer.py peer/bin/aiconfigurator [--runs 3]

Asked of both: Llama 4 Scout in bf16 on at most 8 H100 under vLLM, prompts of 8,000 tokens, answers of 1,000, TTFT at
most 1 s, TPOT at most 33 ms. Whole commands are timed, by the clock and by processor seconds of the process and its
children; medians of runs in turn. The peer searches one format and vLLM's aggregated serving alone, as we do here.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

ISL, OSL = 8000, 1000
LEVEL = ("--ttft", "1s", "--tpot", "33ms")
OURS = (
    *(sys.executable, "-m", "l4spec.cli", "search", "scout", "--gpus", "8xH100", "--engine", "vllm-hybrid"),
    *("--quantization", "bf16", "--kv-dtype", "bf16", "--prompt-tokens", str(ISL), "--output-tokens", str(OSL)),
    *(*LEVEL, "--format", "json"),
)
THEIRS = (
    *("cli", "default", "--model-path", "meta-llama/Llama-4-Scout-17B-16E-Instruct", "--system", "h100_sxm"),
    *("--total-gpus", "8", "--backend", "vllm", "--serving-mode", "agg", "--isl", str(ISL), "--osl", str(OSL)),
    *("--ttft", "1000", "--tpot", "33", "--no-color"),
)
_ROW = re.compile(
    r"\|\s*1\s*\|\s*vllm\s*\|\s*(?P<per_gpu>[\d.]+)\s*\|[^|]*\|[^|]*\|\s*(?P<ttft>[\d.]+)\s*\|\s*(?P<e2e>[\d.]+)\s*\|"
    r"\s*(?P<clients>\d+).*?tp(?P<tp>\d+)pp(?P<pp>\d+)dp(?P<dp>\d+)etp\d+ep(?P<ep>\d+)"
)


def timed(command: Sequence[str]) -> tuple[float, float, str]:
    """Seconds by the clock, seconds of processors, and what was printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, used, done.stdout + done.stderr


def main() -> None:
    """Print both times with their ratio, and the peer's best deployment as we plan it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", help="the aiconfigurator command")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    ours, theirs = [], []
    for _ in range(asked.runs):
        ours.append(timed(OURS))
        theirs.append(timed((asked.peer, *THEIRS)))
    print("| | clock s | processor s |\n|---|---|---|")
    clocks: list[tuple[float, float]] = []
    for name, runs in (("l4spec search", ours), ("aiconfigurator 0.12", theirs)):
        clocks.append((median(run[0] for run in runs), median(run[1] for run in runs)))
        print(f"| {name} | {clocks[-1][0]:.2f} | {clocks[-1][1]:.2f} |")
    print(f"| ratio | {clocks[1][0] / clocks[0][0]:.1f} | {clocks[1][1] / clocks[0][1]:.1f} |\n")
    best = json.loads(ours[0][2])["ranked"][0]
    layout = " ".join(f"{axis}{best['layout'][axis]}" for axis in ("tp", "ep", "pp"))
    where = f"ours, {best['replicas']} x {layout} with {best['concurrency_per_replica']} clients"
    show(where, *served(best))
    _check(theirs[0][2])


def show(what: str, ttft_ms: float, tpot_ms: float, per_gpu: float) -> None:
    """A line with the times of a deployment."""
    print(f"{what}: TTFT {ttft_ms:.0f} ms, TPOT {tpot_ms:.1f} ms, {per_gpu:.0f} tokens/s of a GPU")


def served(document: dict[str, Any]) -> tuple[float, float, float]:
    """TTFT and TPOT in ms, and tokens/s of a GPU."""
    times = document["ttft_seconds"], document["time_per_output_token_seconds"]
    return times[0] * 1e3, times[1] * 1e3, document["tokens_per_second_per_gpu"]


def _check(printed: str) -> None:
    """The peer's best deployment, and our plan of it."""
    row = _ROW.search(printed)
    if row is None:
        print("the peer printed no row of rank 1")
        return
    tpot = (float(row["e2e"]) - float(row["ttft"])) / (OSL - 1)
    layout = " ".join(f"{axis}{row[axis]}" for axis in ("tp", "ep", "pp", "dp"))
    show(f"theirs, {layout} with {row['clients']} clients", float(row["ttft"]), tpot, float(row["per_gpu"]))
    degrees = [word for axis in ("tp", "ep", "pp", "dp") for word in (f"--{axis}", row[axis])]
    load = ("--prompt-tokens", str(ISL), "--output-tokens", str(OSL), "--concurrency", row["clients"])
    plan = (sys.executable, "-m", "l4spec.cli", "plan", "scout", "--gpus", "8xH100", "--engine", "vllm-hybrid")
    document = json.loads(timed((*plan, *degrees, *load, "--format", "json"))[2])
    show(f"theirs by our plan (fits: {document['fits']})", *served(document["latency"]))


if __name__ == "__main__":
    main()
