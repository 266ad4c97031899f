"""How fast our models run on this machine: against transformers, and against what the machine can do.

    python -m benchmarks.run_speed [--models 16-experts 128-experts] [--dtypes fp32 bf16] [--rounds 5] [--threads 2]
                                   [--clock wall|cpu] [--json RESULTS.json] [--tiny]

Both sides have the same weights, and their logits are compared first. Everything is timed in turn within a round; times
are medians over rounds, ratios are medians of the ratios within a round. Measured are: the logits of 1024 tokens
(`prefill`; for us also into a cache, the last token's logits alone), and decode steps behind 1024 tokens, for one
sequence and for eight. The machine's own limits are the model's matmuls run alone, and the weights of a matrix far
larger than any cache read by a matrix-vector product. Last, a model with chunked attention alone shows that its time
per token stays the same however long the context is.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed_decode import bytes_per_step, our_steps, prefilled, reference_steps
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
from benchmarks.speed_timing import Clock, Timed, Times, interleaved
from l4spec.runtime.model import Model

MODELS = ("16-experts", "128-experts")
NUM_STEPS = 8
NUM_ROWS = (1, 8)
"""Sequences that are decoded at once."""
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
    clock: Clock = "wall"


def measure(name: str, dtype: str, options: Options, exact: dict[str, Tensor]) -> dict[str, Any]:
    """All measures of one model in one number format; `exact` keeps the fp32 logits for the bf16 run."""
    model = ours(spec_of(name, options.overrides), options.device, dtype)
    other = reference(model)
    ids = token_ids(model, 8, options.tokens + NUM_STEPS)
    prefix, tokens = ids[:1, : options.tokens], ids[:, options.tokens :]
    past, difference = _check_agreement(name, model, other, prefix, tokens[:1, :1], exact)
    routing = Routing.of(model, prefix)
    matmuls, matmul_flops = plain_matmuls(model, options.tokens, routing)
    streams, streamed = streaming(model, options.streamed_bytes)
    things = _things(model, other, prefix, tokens, past) | {"matmuls": Timed(matmuls)}
    things |= {kind: Timed(product) for kind, product in streams.items()}
    times = interleaved(things, options.rounds, model.device, options.clock)
    ideal = forward_flops(model, 1, options.tokens) / matmul_flops * times.ratio("matmuls", "prefill")
    result: dict[str, Any] = {
        "model": name,
        "dtype": dtype,
        "logit_difference": difference,
        "matmul_flops_per_second": matmul_flops / times.median("matmuls"),
        "streamed_bytes_per_second": streamed / times.median("stream"),
        "our_streamed_bytes_per_second": streamed / times.median("stream, ours"),
        "experts_hit": {node: routing.num_touched(node) for node in routing.rows},
        "prefill": _pair(times, "prefill", 1) | {"of_matmul_rate": ideal},
        "prefill, last logits": {"seconds": times.median("prefill, last logits")},
    }
    for rows in NUM_ROWS:
        step = f"decode {rows}"
        touched = bytes_per_step(model, prefix.expand(rows, -1), tokens[:rows])
        share = touched * NUM_STEPS / streamed * times.ratio("stream", step)
        result[step] = _pair(times, step, NUM_STEPS) | {"touched_bytes": touched, "of_stream_rate": share}
    return result | {"seconds_of_rounds": dict(times.rounds)}


def _things(model: Model, other: Any, prefix: Tensor, tokens: Tensor, past: Any) -> dict[str, Timed]:
    cache = model.new_cache(1, prefix.shape[1])
    found = {
        "prefill": Timed(lambda: model(prefix)),
        "prefill, transformers": Timed(lambda: other(prefix, use_cache=False), is_slow=True),
        "prefill, last logits": Timed(lambda: model(prefix, cache=cache, logits="last"), cache.reset),
    }
    for rows in NUM_ROWS:
        found[f"decode {rows}"] = our_steps(model, prefix.expand(rows, -1), tokens[:rows])
        found[f"decode {rows}, transformers"] = reference_steps(other, past, tokens[:rows])
    return found


def _pair(times: Times, name: str, steps: int) -> dict[str, float]:
    theirs = f"{name}, transformers"
    return {
        "seconds": times.median(name) / steps,
        "transformers_seconds": times.median(theirs) / steps,
        "times_faster": times.ratio(theirs, name),
    }


def _check_agreement(
    name: str, model: Model, other: Any, prefix: Tensor, token: Tensor, exact: dict[str, Tensor]
) -> tuple[Any, float]:
    """The reference's cache of the prefix, and the largest relative difference of logits, on the prefix and behind it.

    Exits where the comparison is not fair.
    """
    read = other(prefix, use_cache=True)
    step = other(token, past_key_values=copy.deepcopy(read.past_key_values), use_cache=True)
    theirs = torch.cat((read.logits, step.logits), dim=1)
    mine = torch.cat((model(prefix), model(token, cache=prefilled(model, prefix, 1))), dim=1)
    difference = relative_difference(mine, theirs)
    if model.dtype == torch.float32:
        exact[name] = theirs
        is_fair = difference < FP32_AGREEMENT
    elif name in exact:
        ours_off, theirs_off = (float((x.float() - exact[name]).square().mean().sqrt()) for x in (mine, theirs))
        is_fair = ours_off <= BF16_SLACK * theirs_off
    else:
        raise SystemExit("bf16 is compared with the fp32 logits: name fp32 before it")
    if not is_fair:
        raise SystemExit(f"{name} {model.dtype}: logits differ by {difference:.1e}, so that no comparison is fair")
    return read.past_key_values, difference


def long_contexts(options: Options, dtype: str) -> list[dict[str, float]]:
    """Time per token of a model of chunked layers alone, reading a prompt and behind it, at several lengths."""
    model = ours(spec_of("16-experts", (*options.overrides, ALL_LOCAL)), options.device, dtype)
    things = {}
    for context in options.contexts:
        ids = token_ids(model, 1, context + PHASE + NUM_STEPS)
        prefix, tokens = ids[:, :-NUM_STEPS], ids[:, -NUM_STEPS:]
        things[f"read {context}"] = Timed(partial(prefilled, model, prefix), is_slow=True)
        things[f"step {context}"] = our_steps(model, prefix, tokens)
    times = interleaved(things, options.rounds, model.device, options.clock)
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
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for one thread of a busy machine"
    )
    parser.add_argument("--json", type=Path, help="write results there too")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes: the numbers mean nothing")
    given = parser.parse_args()
    options = Options(
        given.models,
        given.dtypes,
        given.rounds,
        tokens=272 if given.tiny else 1024,
        contexts=(256, 512) if given.tiny else CONTEXTS,
        overrides=TINY if given.tiny else (),
        streamed_bytes=1 << 20 if given.tiny else 1 << 28,
        clock=given.clock,
    )
    return options, given


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
    contexts = {options.dtypes[0]: long_contexts(options, options.dtypes[0])}
    report = {
        "conditions": conditions() | {"clock": options.clock},
        "options": asdict(options),
        "results": results,
        "contexts": contexts,
    }
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(report)


if __name__ == "__main__":
    main()
