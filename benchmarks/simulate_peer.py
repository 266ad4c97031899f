"""Replay one trace in l4spec and in the Rust replay of ai-dynamo, in turn, and compare prefix reuse and time.

    python -m venv peer
    peer/bin/pip install ai-dynamo-runtime==1.6.1
    peer/bin/pip install --no-deps ai-dynamo==1.6.1
    python benchmarks/simulate_peer.py mooncake_conversation_trace.jsonl peer/bin/python [--runs 3]

Both programs get the same trace (Mooncake's format, hashes of 512 tokens), 16 servers, blocks, pool, most sequences and
tokens of a step; their settings are printed. Reuse is the share of prompt tokens that a server's cache had when the
request was first admitted. Seconds are of the processor, medians of runs in turn; the clock's seconds
are printed too, since the peer may use several cores. Times of steps are each program's own: they move what is still
in a cache.
"""

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.simulate_accuracy import scenario, table

SERVERS, POOL_TOKENS, MOST_SEQUENCES, MOST_TOKENS = 16, 1 << 20, 256, 8192
ROUTERS = {"round_robin": "round_robin", "prefix_aware": "kv_router"}
"""Routers: our name and the peer's."""
PEER = """
import json, sys, time
import dynamo._core as core
asked = json.loads(sys.argv[1])
began, clock = time.process_time(), time.perf_counter()
result = core.run_mocker_trace_replay(
    [asked["trace"]], extra_engine_args={"engine": asked["engine"]}, num_workers=asked["servers"],
    router_mode=asked["router"], trace_block_size=512,
    router_config=core.KvRouterConfig() if asked["router"] == "kv_router" else None,
)
seconds, clock = time.process_time() - began, time.perf_counter() - clock
summary = result.summary
print(json.dumps({"reuse": summary["prefix_cache_reused_ratio"], "seconds": seconds, "clock": clock,
                  "requests": summary["completed_requests"]}))
"""


@dataclass(frozen=True)
class Replay:
    """One program's answer: reuse as a share, processor and clock seconds."""

    reuse: float
    seconds: float
    clock: float
    requests: int


def engine_of(block: int) -> dict[str, object]:
    """The peer's engine: vLLM's scheduler on a pool of POOL_TOKENS."""
    return {
        "backend": "vllm",
        "worker_type": "aggregated",
        "block_size": block,
        "num_gpu_blocks": POOL_TOKENS // block,
        "max_num_seqs": MOST_SEQUENCES,
        "max_num_batched_tokens": MOST_TOKENS,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
    }


def peer(python: Path, trace: Path, router: str, block: int) -> Replay:
    """The peer's answer, from a process of its own, without its log of every choice."""
    asked = {"trace": str(trace), "engine": engine_of(block), "servers": SERVERS, "router": ROUTERS[router]}
    done = subprocess.run(
        [python, "-c", PEER, json.dumps(asked)],
        env=os.environ | {"DYN_LOG": "error"},
        capture_output=True,
        text=True,
        check=True,
    )
    return Replay(**json.loads(done.stdout.splitlines()[-1]))


def model_line(router: str, block: int) -> str:
    """Our deployment of the same: times are of Llama 3.1 8B on one H100."""
    scheduler = f"{{block_size_tokens: {block}, max_num_seqs: {MOST_SEQUENCES}, max_num_batched_tokens: {MOST_TOKENS}}}"
    return (
        f"spec: llama-3.1-8b, gpus: 1xH100, replicas: {SERVERS}, kv_blocks: {POOL_TOKENS // block}, "
        f"router: {router}, scheduler: {scheduler}"
    )


def ours(trace: Path, router: str, block: int) -> Replay:
    """Our answer, from reading the trace to the figures."""
    began, clock = time.process_time(), time.perf_counter()
    workload = f"arrivals: {{kind: trace, path: {trace}}}"
    result = scenario(f"models: {{m: {{{model_line(router, block)}}}}}\nworkload: {{{workload}}}\n").run().result
    seconds, clock = time.process_time() - began, time.perf_counter() - clock
    return Replay(result.servers[0].prefix_hit_rate, seconds, clock, result.requests)


def rows(python: Path, trace: Path, runs: int) -> Iterator[tuple[str, ...]]:
    """A row per router and size of a block, both programs in turn."""
    for router in ROUTERS:
        for block in (16, 64):
            pairs = [(ours(trace, router, block), peer(python, trace, router, block)) for _ in range(runs)]
            (mine, theirs), gap = pairs[0], 100 * (pairs[0][0].reuse - pairs[0][1].reuse)
            assert mine.requests == theirs.requests, "both serve every request"
            cells = [_seconds([pair[side] for pair in pairs]) for side in (0, 1)]
            yield (router, str(block), f"{mine.reuse:.2%}", f"{theirs.reuse:.2%}", f"{gap:+.2f}", *cells)


def _seconds(replays: list[Replay]) -> str:
    return f"{median(each.seconds for each in replays):.1f} s ({median(each.clock for each in replays):.1f} s)"


def main() -> None:
    """Print both programs' settings and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("peer", type=Path, help="the Python of an environment with ai-dynamo 1.6.1")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = options.trace
        if trace.suffix == ".gz":
            trace = Path(folder) / trace.stem
            trace.write_bytes(gzip.decompress(options.trace.read_bytes()))
        print(f"ours: {model_line('ROUTER', 16)}")
        print(f"peer: ai-dynamo-runtime 1.6.1, {SERVERS} workers, {json.dumps(engine_of(16))}")
        print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        headers = ("router", "block", "our reuse", "its reuse", "points apart", "our seconds (clock)", "its (clock)")
        table(headers, rows(options.peer, trace, options.runs))


if __name__ == "__main__":
    main()
