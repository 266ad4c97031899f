"""How fast our models run on this machine: against transformers, and against what the machine can do.

    python -m benchmarks.run_speed [--models 16-experts 128-experts] [--dtypes fp32 bf16] [--rounds 5] [--threads 2]
                                   [--json RESULTS.json] [--tiny]

Both sides have the same weights, and their logits are compared first. Everything is timed in turn within a round; times
are medians over rounds, ratios are medians of the ratios within a round. Measured are: the logits of 1024 tokens
(`forward`), the same into a cache with the last token's logits (`prefill`), and decode steps behind 1024 tokens, for
one sequence and for eight. The machine's own limits are the model's matmuls run alone, and the weights of a matrix far
larger than any cache read by a matrix-vector product. Last, a model with chunked attention alone shows that its time
per token stays the same however long the context is.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed_decode import bytes_per_step, logits_behind, our_steps, prefilled, reference_steps
from benchmarks.speed_limits import plain_matmuls, streaming
from benchmarks.speed_models import (
    ALL_LOCAL,
    TINY,
    Routing,
    forward_flops,
    ours,
    reference,
    relative_difference,
    spec_of,
    token_ids,
)
from benchmarks.speed_report import conditions, print_report
from benchmarks.speed_timing import Timed, Times, interleaved
from l4spec.runtime.model import Model

MODELS = ("16-experts", "128-experts")
NUM_STEPS = 8
PHASE = 128
"""Tokens into a chunk at which steps are timed in every context, so that they see equally many keys."""
CONTEXTS = (1024, 4096, 16384)
FP32_AGREEMENT = 1e-4
"""Largest relative difference of logits at which a comparison is fair; kernels sum in other orders."""
BF16_SLACK = 1.25
"""How much farther from fp32 logits than the reference's our bf16 logits may lie, as root mean square."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    models: Sequence[str]
    dtypes: Sequence[str]
    rounds: int
    tokens: int
    contexts: Sequence[int]
    overrides: Sequence[str]
    streamed_bytes: int
    device: str = "cpu"


def measure(name: str, dtype: str, options: Options, exact: dict[str, Tensor]) -> dict[str, Any]:
    """All measures of one model in one number format; `exact` keeps the fp32 logits for the bf16 run."""
    model = ours(spec_of(name, options.overrides), options.device, dtype)
    other = reference(model)
    ids = token_ids(model, 1, options.tokens)
    difference = _check_agreement(name, model, other, ids, exact)
    routing = Routing.of(model, ids)
    matmuls, matmul_flops = plain_matmuls(model, options.tokens, routing)
    stream, streamed = streaming(model.device, model.dtype, options.streamed_bytes)
    things = _things(model, other, ids) | {"matmuls": Timed(matmuls), "stream": Timed(stream)}
    times = interleaved(things, options.rounds, model.device)
    matmul_rate = matmul_flops / times.median("matmuls")
    ideal_forward = forward_flops(model, 1, options.tokens) / matmul_flops
    result: dict[str, Any] = {
        "model": name,
        "dtype": dtype,
        "logit_difference": difference,
        "matmul_flops_per_second": matmul_rate,
        "streamed_bytes_per_second": streamed / times.median("stream"),
        "experts_hit": {node: routing.num_touched(node) for node in routing.rows},
        "forward": _pair(times, "forward", 1) | {"of_matmul_rate": ideal_forward * times.ratio("matmuls", "forward")},
        "prefill": _pair(times, "prefill", 1),
    }
    for rows in (1, 8):
        step = f"decode {rows}"
        touched = bytes_per_step(model, *_decode_inputs(model, rows, options.tokens))
        of_stream = touched * NUM_STEPS / streamed * times.ratio("stream", step)
        result[step] = _pair(times, step, NUM_STEPS) | {"touched_bytes": touched, "of_stream_rate": of_stream}
    return result | {"seconds_of_rounds": dict(times.rounds)}


def _things(model: Model, other: Any, ids: Tensor) -> dict[str, Timed]:
    cache = model.new_cache(1, ids.shape[1])
    found = {
        "forward": Timed(lambda: model(ids)),
        "forward, transformers": Timed(lambda: other(ids, use_cache=False)),
        "prefill": Timed(lambda: model(ids, cache=cache, logits="last"), cache.reset),
        "prefill, transformers": Timed(lambda: other(ids, use_cache=True, logits_to_keep=1)),
    }
    for rows in (1, 8):
        inputs = _decode_inputs(model, rows, ids.shape[1])
        found[f"decode {rows}"] = our_steps(model, *inputs)
        found[f"decode {rows}, transformers"] = reference_steps(other, *inputs)
    return found


def _decode_inputs(model: Model, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A prefix and the tokens of NUM_STEPS steps behind it."""
    ids = token_ids(model, rows, tokens + NUM_STEPS)
    return ids[:, :tokens], ids[:, tokens:]


def _pair(times: Times, name: str, steps: int) -> dict[str, float]:
    theirs = f"{name}, transformers"
    return {
        "seconds": times.median(name) / steps,
        "transformers_seconds": times.median(theirs) / steps,
        "times_faster": times.ratio(theirs, name),
    }


def _check_agreement(name: str, model: Model, other: Any, ids: Tensor, exact: dict[str, Tensor]) -> float:
    """The relative difference of logits, whole and after a cached prefix; exits where the comparison is not fair."""
    mine, theirs = model(ids), other(ids, use_cache=False).logits
    difference = relative_difference(mine, theirs)
    if model.dtype == torch.float32:
        exact[name] = theirs
        stepped = relative_difference(*logits_behind(model, other, ids[:, :-1], ids[:, -1:]))
        is_fair, difference = max(difference, stepped) < FP32_AGREEMENT, max(difference, stepped)
    elif name in exact:
        ours_off, theirs_off = (float((x.float() - exact[name]).square().mean().sqrt()) for x in (mine, theirs))
        is_fair = ours_off <= BF16_SLACK * theirs_off
    else:
        raise SystemExit("bf16 is compared with the fp32 logits: name fp32 before it")
    if not is_fair:
        raise SystemExit(f"{name} {model.dtype}: logits differ by {difference:.1e}, so that no comparison is fair")
    return difference


def long_contexts(options: Options, dtype: str) -> list[dict[str, float]]:
    """Time per token of a model of chunked layers alone, reading a prompt and behind it, at several lengths."""
    model = ours(spec_of("16-experts", (*options.overrides, ALL_LOCAL)), options.device, dtype)
    things = {}
    for context in options.contexts:
        ids = token_ids(model, 1, context + PHASE + NUM_STEPS)
        prefix, tokens = ids[:, :-NUM_STEPS], ids[:, -NUM_STEPS:]
        things[f"read {context}"] = Timed(lambda prefix=prefix: prefilled(model, prefix, 0))  # type: ignore[misc]
        things[f"step {context}"] = our_steps(model, prefix, tokens)
    times = interleaved(things, options.rounds, model.device)
    first = options.contexts[0]
    return [
        {
            "context": context,
            "read_seconds_per_token": times.median(f"read {context}") / (context + PHASE),
            "step_seconds": times.median(f"step {context}") / NUM_STEPS,
            "step_over_first": times.ratio(f"step {context}", f"step {first}"),
        }
        for context in options.contexts
    ]


def _options() -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write results there too")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes: the numbers mean nothing")
    given = parser.parse_args()
    tiny = given.tiny
    sizes = (272, (256, 512), TINY, 1 << 20) if tiny else (1024, CONTEXTS, (), 1 << 28)
    return Options(given.models, given.dtypes, given.rounds, *sizes), given


def main() -> None:
    """Measure, print a table, and write JSON when asked."""
    options, given = _options()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    results = []
    for name in options.models:
        exact: dict[str, Tensor] = {}
        for dtype in options.dtypes:
            print(f"measuring {name} in {dtype} …", file=sys.stderr, flush=True)
            results.append(measure(name, dtype, options, exact))
    print("measuring long contexts …", file=sys.stderr, flush=True)
    contexts = {dtype: long_contexts(options, dtype) for dtype in options.dtypes}
    report = {"conditions": conditions(), "options": asdict(options), "results": results, "contexts": contexts}
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(report)


if __name__ == "__main__":
    main()
