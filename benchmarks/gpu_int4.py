"""Does Scout fit one 80 GB GPU in Int4? Built with random weights under a cap, run, and compared with its plan.

    python -m benchmarks.gpu_int4 [--cap-gib 79.2] [--decode 64] [--json RESULTS.json] [--rehearse]

Without a CUDA device it says so and ends with exit code 3: **not measured yet**. `--rehearse` runs the same code on the
CPU with a miniature, where the numbers mean nothing. The model is packed layer by layer as w4a16, reads 8,192 tokens in
pieces of 2,048, and decodes; peak memory and times are printed with the planned ones. Then the longest context is
sought at which a cache, the last piece of a prompt and a decode step still fit: the cache is taken as full of what it
was allocated with, since only memory is asked about.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import l4spec
import planners
from l4spec.graph.layer_graph import LayerGraph
from l4spec.quantization.scheme import scheme_named
from l4spec.quantization.tensors import fitted
from l4spec.runtime.build import build_quantized
from l4spec.runtime.model import Model
from l4spec.runtime.module_inventory import module_bytes

NO_GPU = 3
PIECE = 2048


@dataclass(frozen=True, slots=True)
class Setting:
    """A run: a spec on a device, prompts of `prompt` tokens read in pieces, then `decode` steps."""

    spec: str
    device: str
    cap_bytes: int | None
    prompt: int
    piece: int
    decode: int
    longest: int
    """No longer context is tried."""


def peak(device: str) -> int | None:
    """Most bytes that the allocator has reserved so far."""
    return torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else None


def seconds(device: str, run: Callable[[], Any]) -> float:
    """Seconds of `run`, including its kernels."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def run_model(model: Model, setting: Setting) -> dict[str, Any]:
    """Seconds of a prompt and of a decode step, and the peak of both."""
    vocab_size = model.graph.model.text.embedding.vocab_size
    ids = torch.randint(vocab_size, (1, setting.prompt), generator=torch.Generator().manual_seed(0)).to(model.device)
    model(ids[:, :1], logits="last")  # what a first call sets up is not the model's time
    cache = model.new_cache(1, setting.prompt + setting.decode)

    def read() -> None:
        for begin in range(0, setting.prompt, setting.piece):
            model(ids[:, begin : begin + setting.piece], cache=cache, logits="last")

    def speak() -> None:
        for _ in range(setting.decode):
            model(ids[:, -1:], cache=cache, logits="last")

    prefill = seconds(setting.device, read)
    step = seconds(setting.device, speak) / setting.decode
    return {"prefill_seconds": prefill, "step_seconds": step, "peak_bytes": peak(setting.device)}


def fits(model: Model, setting: Setting, context: int) -> bool:
    """True if a cache of `context` tokens, the last piece of a prompt and a decode step fit beside the weights."""
    try:
        cache = model.new_cache(1, context)
        cache.length = max(0, context - 1 - setting.piece)
        ids = torch.zeros((1, min(setting.piece, context - 1)), dtype=torch.long, device=model.device)
        model(ids, cache=cache, logits="last")
        model(ids[:, :1], cache=cache, logits="last")
    except (torch.OutOfMemoryError, l4spec.UserError):
        return False
    finally:
        cache = None  # type: ignore[assignment]  # the next try needs its memory
        if setting.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return True


def longest_context(model: Model, setting: Setting) -> int:
    """The longest context that fits, to within 1,024 tokens (or 1 % of less)."""
    low, high = setting.prompt, setting.longest + 1
    while high - low > min(1024, max(1, low // 100)):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(model, setting, middle) else (low, middle)
    return low


def planned(graph: LayerGraph, setting: Setting, scheme: str) -> dict[str, Any]:
    """The same numbers as the planner gives them for one H100 of 80 GB; time by vLLM's factors."""
    plan = planners.plan(graph, gpus="1xH100", quantization=scheme, context=setting.prompt + setting.decode)
    return {
        "weight_bytes": plan.weights.bytes,
        "peak_bytes": plan.memory_per_device.total_bytes - plan.memory_per_device.reserved_bytes,
        "prefill_seconds": plan.latency.ttft_seconds if plan.latency else None,
        "step_seconds": plan.latency.time_per_output_token_seconds if plan.latency else None,
        "longest_context": plan.max_context,
    }


def measure(setting: Setting) -> dict[str, Any]:
    """Build, run and seek the longest context."""
    graph = l4spec.compile(l4spec.load(setting.spec))
    table = fitted(graph, scheme_named("w4a16"))
    if setting.cap_bytes is not None:
        total = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, setting.cap_bytes / total), setting.device)
    start = time.perf_counter()
    model = build_quantized(graph, table, setting.device)
    results = {"build_seconds": time.perf_counter() - start, "weight_bytes": module_bytes(model)}
    results |= {"build_peak_bytes": peak(setting.device)} | run_model(model, setting)
    results["longest_context"] = longest_context(model, setting)
    return {"scheme": table.name, "planned": planned(graph, setting, table.name), "measured": results}


def main() -> None:
    """Measure, print plan beside run, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cap-gib", type=float, default=79.2, help="memory that this process may take")
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write results there too")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with a miniature")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (`--rehearse` runs the code on the CPU)")
        raise SystemExit(NO_GPU)
    torch.set_grad_enabled(False)
    setting = Setting("scout", "cuda", int(given.cap_gib * 2**30), 8192, PIECE, given.decode, 2_000_000)
    if given.rehearse:
        setting = Setting("tiny/scout", "cpu", None, 96, 32, 4, 512)
    report = {"setting": asdict(setting), "torch": torch.__version__, **measure(setting)}
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plan, run = report["planned"], report["measured"]
    rows = [(name, plan.get(name), run.get(name)) for name in dict.fromkeys((*plan, *run))]
    print(f"{setting.spec} as {report['scheme']} on {setting.device}{', a rehearsal' if given.rehearse else ''}\n")
    print(tabulate(rows, ("", "planned", "measured"), tablefmt="github", floatfmt=",.4f", intfmt=",", missingval="-"))


if __name__ == "__main__":
    main()
