"""Speed of our models on a GPU in bf16: beside transformers, and of one block of Scout at its real width.

    python -m benchmarks.gpu_speed [--rounds 10] [--json RESULTS.json] [--rehearse]

Without a CUDA device it says so and ends with exit code 3; `--rehearse` runs the same code on the CPU with tiny sizes,
where the numbers mean nothing. The first part is that of benchmarks/run_speed.py. The second is `scout` cut to one
block (2.2B parameters, and as many in embedding and head) on a prompt of 4096 tokens, on one token, and on one token of
64 sequences each, without a cache, as it is and under `torch.compile(fullgraph=True)`.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

import l4spec
from benchmarks.run_speed import CONTEXTS, MODELS, PARTS, Options, results
from benchmarks.speed_models import TINY
from benchmarks.speed_report import conditions, print_report
from benchmarks.speed_timing import Timed, interleaved
from l4spec.runtime.build import build
from l4spec.runtime.model import Model

NO_GPU = 3
ONE_BLOCK = ("text.layers=[{attention: local, ffn: moe}]", "vision=null")
TINY_BLOCK = ("text.vocab_size=512", *ONE_BLOCK)
BLOCK_TOKENS = 4096


def scout_block(options: Options) -> dict[str, Any]:
    """Seconds of one Scout block, eager and compiled, for a prompt and for single tokens of one and of 64 rows."""
    is_tiny = options.device == "cpu"
    name, overrides = ("tiny/scout", TINY_BLOCK) if is_tiny else ("scout", ONE_BLOCK)
    graph = l4spec.compile(l4spec.load(name, overrides))
    model = build(graph, options.device, "bf16").requires_grad_(requires_grad=False)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    works = {"prompt": (1, 64 if is_tiny else BLOCK_TOKENS), "1 row": (1, 1), "64 rows": (64, 1)}
    inputs = {work: torch.randint(512, shape, device=options.device) for work, shape in works.items()}
    _check_compiled(model, compiled, inputs["prompt"])
    things = {
        f"{work}, {kind}": Timed(_last_logits(runner, ids))
        for work, ids in inputs.items()
        for kind, runner in (("eager", model), ("compiled", compiled))
    }
    times = interleaved(things, options.rounds, model.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"spec": name, "parameters": num_parameters, "seconds": {thing: times.median(thing) for thing in things}}


def _last_logits(runner: Callable[..., Tensor], ids: Tensor) -> Callable[[], Tensor]:
    return lambda: runner(ids, logits="last")


def _check_compiled(model: Model, compiled: Callable[..., Tensor], ids: Tensor) -> None:
    """Exits where compiling changes the logits by more than bf16 explains (8 bits; blocks of sums of thousands)."""
    plain, other = model(ids, logits="last"), compiled(ids, logits="last")
    difference = float((plain - other).abs().max() / plain.abs().max())
    if difference > 0.05:
        raise SystemExit(f"the compiled block's logits differ by {difference:.1e}")


def main() -> None:
    """Measure, print tables, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write results there too")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with tiny sizes")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (`--rehearse` runs the code on the CPU)")
        raise SystemExit(NO_GPU)
    torch.set_grad_enabled(False)
    options = Options(
        MODELS, ("fp32", "bf16"), PARTS, given.rounds, 1024, CONTEXTS, (), 1 << 32, "cuda", contexts_dtype="bf16"
    )
    if given.rehearse:
        tiny = {"rounds": 1, "tokens": 272, "contexts": (256, 512), "overrides": TINY, "streamed_bytes": 1 << 20}
        options = replace(options, device="cpu", **tiny)  # type: ignore[arg-type]
    measured, block = list(results(options)), scout_block(options)
    report = {"conditions": conditions(), "options": asdict(options), "results": measured, "block": block}
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(report)
    print(f"\none block of {block['spec']}, {block['parameters']:,} parameters with embedding and head\n")
    rows = [(thing, 1e3 * seconds) for thing, seconds in block["seconds"].items()]
    print(tabulate(rows, ("what", "ms"), tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
