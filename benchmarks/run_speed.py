"""Speed of our models on this machine, beside transformers and the machine's limits.

    python -m benchmarks.run_speed [--models 16-experts 128-experts] [--dtypes fp32 bf16] [--rounds 5] [--threads 2]
                                   [--parts prefill decode-1 decode-8 train contexts] [--clock wall|cpu]
                                   [--processes 1] [--apart] [--keep-freed] [--tokens 1024]
                                   [--json RESULTS.json] [--tiny]

Both sides have the same weights, and their logits are compared first. Everything is timed in turn within a round; times
are medians over rounds, ratios are medians of the ratios within a round. Measured are: the logits of 1024 tokens
(`prefill`; for us also into a cache, the last token's logits alone), a training step of them (`train`: forward,
backward, AdamW), and decode steps after 1024 tokens, for one sequence, by a compiled step too, and for eight. The
machine's own limits are the model's matmuls run alone, and the weights of a matrix far larger than any cache read by a
matrix-vector product. Last, a model with chunked attention alone shows that its time per token stays the same however
long the context is.

Where its memory lies is chance for each process, and changes how fast it is read by up to a half. `--processes` runs
everything in so many, one after another, and tells of each result the process with the median share of the limit.

`--apart` is for models whose training steps do not fit into memory together: in each round a process of ours and one
of transformers take a step, one after the other, with the same weights; losses and gradients' norms are compared. With
`--keep-freed` the C library keeps all freed memory on both sides (glibc).
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed_apart import USUAL_TOKENS, Apart, train_apart
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
from benchmarks.speed_report import add_to, conditions, load_average, median_results, print_report
from benchmarks.speed_timing import Clock, Timed, Times, interleaved
from benchmarks.speed_train import PASSES, training_steps, without_gradients
from l4spec.layers.common.kept_memory import kept_memory
from l4spec.runtime.compiled import CompiledStep, compile_step
from l4spec.runtime.model import Model

MODELS = ("16-experts", "128-experts")
FEWER_LAYERS = "128-experts-4-layers"
"""Model (b) with half of its layers, of which each side's training step fits into 12 GiB."""
PARTS = ("prefill", "decode-1", "decode-8", "train", "contexts")
"""Parts that can be measured separately; the number after `decode` is that of sequences decoded at once."""
NUM_STEPS = 8
PHASE = 128
"""Tokens into a chunk at which steps are timed in every context, so that they see equally many keys."""
CONTEXTS = (1024, 4096, 16384)
FP32_AGREEMENT = 1e-4
"""Largest relative difference of logits at which a comparison is fair; kernels sum in other orders."""
BF16_AGREEMENT = 0.05
"""The same of two ways to compute a step in bf16, which keeps 8 bits."""
BF16_SLACK = 1.25
"""Largest ratio of our bf16 logits' error to the reference's, relative to fp32 logits, as root mean square."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the measurement."""

    models: Sequence[str]
    dtypes: Sequence[str]
    parts: Sequence[str]
    rounds: int
    tokens: int
    contexts: Sequence[int]
    overrides: Sequence[str]
    streamed_bytes: int
    device: str = "cpu"
    clock: Clock = "wall"
    threads: int = 2
    apart: bool = False
    keeps_freed: bool = False
    contexts_dtype: str = "fp32"


def measure(name: str, dtype: str, options: Options, exact: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """One result per part of one model in one number format; `exact` keeps the fp32 logits for the bf16 run."""
    model = ours(spec_of(name, options.overrides), options.device, dtype)
    other = reference(model)
    ids = token_ids(model, 8, options.tokens + NUM_STEPS)
    prefix, tokens = ids[:1, : options.tokens], ids[:, options.tokens :]
    past, difference = _check_agreement(name, model, other, prefix, tokens[:1, :1], exact)
    about = {"model": name, "dtype": dtype, "logit_difference": difference, "load_average": load_average()}
    for part in options.parts:
        if part == "prefill":
            yield about | _prefill(model, other, prefix, options)
        elif part == "train":
            yield about | _train(model, other, prefix, options)
        elif part != "contexts":
            rows = tokens[: int(part.removeprefix("decode-"))]
            yield from (about | result for result in _decode(model, other, prefix, rows, past, options))


def _prefill(model: Model, other: Any, prefix: Tensor, options: Options) -> dict[str, Any]:
    """Reading a prompt, beside the model's matmuls run alone."""
    cache, routing = model.new_cache(1, prefix.shape[1]), Routing.of(model, prefix)
    matmuls, matmul_flops = plain_matmuls(model, options.tokens, routing)
    things = {
        "prefill": Timed(lambda: model(prefix)),
        "transformers": Timed(lambda: other(prefix, use_cache=False), is_slow=True),
        "prefill, last logits": Timed(lambda: model(prefix, cache=cache, logits="last"), cache.reset),
        "matmuls": Timed(matmuls),
    }
    times = interleaved(things, options.rounds, model.device, options.clock)
    return {
        "part": "prefill",
        **_pair(times, "prefill", "transformers", 1),
        "last_logits_seconds": times.median("prefill, last logits"),
        "matmul_flops_per_second": matmul_flops / times.median("matmuls"),
        "of_matmul_rate": forward_flops(model, 1, options.tokens) / matmul_flops * times.ratio("matmuls", "prefill"),
        "experts_hit": {node: routing.num_touched(node) for node in routing.rows},
        "seconds_of_rounds": dict(times.rounds),
    }


def _train(model: Model, other: Any, prefix: Tensor, options: Options) -> dict[str, Any]:
    """A training step, beside the forward pass's matmuls run alone: a step has three times their FLOPs."""
    matmuls, matmul_flops = plain_matmuls(model, options.tokens, Routing.of(model, prefix))
    things = training_steps(model, other, prefix) | {"matmuls": Timed(matmuls)}
    with kept_memory():
        times = interleaved(things, options.rounds, model.device, options.clock)
    without_gradients(other)
    flops = PASSES * forward_flops(model, 1, options.tokens)
    return {
        "part": "train",
        **_pair(times, "train", "transformers", 1),
        "matmul_flops_per_second": matmul_flops / times.median("matmuls"),
        "of_matmul_rate": flops / matmul_flops * times.ratio("matmuls", "train"),
        "seconds_of_rounds": dict(times.rounds),
    }


def _train_apart(name: str, dtype: str, options: Options) -> dict[str, Any]:
    """The same without a moment at which both sides are in memory; losses and gradients' norms are compared alone."""
    asked = Apart(name, dtype, options.overrides, options.tokens, options.threads, options.clock, options.keeps_freed)
    about = {"model": name, "dtype": dtype, "load_average": load_average()}
    return about | train_apart(asked, options.rounds, lambda line: print(line, file=sys.stderr, flush=True))


def _decode(
    model: Model, other: Any, prefix: Tensor, tokens: Tensor, past: Any, options: Options
) -> Iterator[dict[str, Any]]:
    """Steps of `tokens` [rows, steps] after `prefix`, beside products that stream weights from memory.

    Those of one sequence also by a compiled step, as a result of its own from the same rounds.
    """
    prefix, name, theirs = prefix.expand(tokens.shape[0], -1), f"decode-{tokens.shape[0]}", "transformers"
    readers = {name: model} | ({f"{name}, compiled": _compiled(model, prefix, tokens)} if len(tokens) == 1 else {})
    streams, streamed = streaming(model, options.streamed_bytes)
    things = {
        **{what: our_steps(model, prefix, tokens, reader) for what, reader in readers.items()},
        theirs: reference_steps(other, past, tokens),
        **{way: Timed(product) for way, product in streams.items()},
    }
    times = interleaved(things, options.rounds, model.device, options.clock)
    rates = {way: streamed / times.median(way) for way in streams}
    touched, best = bytes_per_step(model, prefix, tokens), max(rates, key=lambda way: rates[way])
    for what in readers:
        yield {
            "part": what,
            **_pair(times, what, theirs, NUM_STEPS),
            "touched_bytes": touched,
            "streamed_bytes_per_second": rates,
            "of_stream_rate": touched * NUM_STEPS / streamed * times.ratio(best, what),
            "seconds_of_rounds": dict(times.rounds),
        }


def _compiled(model: Model, prefix: Tensor, tokens: Tensor) -> CompiledStep:
    """A compiled step; exits where it says something else than the model."""
    step = compile_step(model)
    mine, plain = (reader(tokens[:, :1], cache=prefilled(model, prefix, 1)) for reader in (step, model))
    difference = relative_difference(mine, plain)
    if difference >= (FP32_AGREEMENT if model.dtype == torch.float32 else BF16_AGREEMENT):
        raise SystemExit(f"{model.dtype}: a compiled step differs by {difference:.1e}, so that no comparison is fair")
    return step


def _pair(times: Times, name: str, theirs: str, steps: int) -> dict[str, float]:
    return {
        "seconds": times.median(name) / steps,
        "transformers_seconds": times.median(theirs) / steps,
        "times_faster": times.ratio(theirs, name),
    }


def _check_agreement(
    name: str, model: Model, other: Any, prefix: Tensor, token: Tensor, exact: dict[str, Tensor]
) -> tuple[Any, float]:
    """The reference's cache of the prefix, and the largest relative difference of logits, on the prefix and after it.

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
    else:
        ours_off, theirs_off = (float((x.float() - exact[name]).square().mean().sqrt()) for x in (mine, theirs))
        is_fair = ours_off <= BF16_SLACK * theirs_off
    if not is_fair:
        raise SystemExit(f"{name} {model.dtype}: logits differ by {difference:.1e}, so that no comparison is fair")
    return read.past_key_values, difference


def long_contexts(options: Options, dtype: str) -> list[dict[str, Any]]:
    """Time per token of a model of chunked layers alone, reading a prompt and after it, at several lengths."""
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
            "model": "16-experts, local",
            "dtype": dtype,
            "part": f"context {context}",
            "context": context,
            "read_seconds_per_token": times.median(f"read {context}") / (context + PHASE),
            "step_seconds": times.median(f"step {context}") / NUM_STEPS,
            "step_over_first": times.ratio(f"step {context}", f"step {first}"),
        }
        for context in options.contexts
    ]


def _options() -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=(*MODELS, FEWER_LAYERS), default=MODELS)
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for one thread of a busy machine"
    )
    parser.add_argument("--processes", type=int, default=1, help="run so often, and tell the median")
    parser.add_argument("--apart", action="store_true", help="a process for each side's training step, no other part")
    parser.add_argument(
        "--keep-freed", action="store_true", help="with --apart: no side gives memory back to the system"
    )
    parser.add_argument("--tokens", type=int, default=USUAL_TOKENS, help="tokens of a prefill and of a training step")
    parser.add_argument("--json", type=Path, help="add results to this file, instead of older ones of the same")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes: the numbers mean nothing")
    given = parser.parse_args()
    options = Options(
        given.models,
        given.dtypes,
        ("train",) if given.apart else given.parts,
        given.rounds,
        tokens=272 if given.tiny else given.tokens,
        contexts=(256, 512) if given.tiny else CONTEXTS,
        overrides=TINY if given.tiny else (),
        streamed_bytes=1 << 20 if given.tiny else 1 << 28,
        clock=given.clock,
        threads=given.threads,
        apart=given.apart,
        keeps_freed=given.keep_freed,
    )
    return options, given


def results(options: Options) -> Iterator[dict[str, Any]]:
    """Everything that the options ask for, one result per model, number format and part."""
    for name in options.models if set(options.parts) - {"contexts"} else ():
        exact: dict[str, Tensor] = {}
        for dtype in options.dtypes:
            print(f"measuring {name} in {dtype} …", file=sys.stderr, flush=True)
            if options.apart:
                yield _train_apart(name, dtype, options)
                continue
            if dtype != "fp32" and name not in exact:
                exhausted = measure(name, "fp32", replace(options, parts=()), exact)
                assert not list(exhausted), "no part, no result: the run leaves its exact logits"
            yield from measure(name, dtype, options, exact)
    if "contexts" in options.parts:
        print("measuring long contexts …", file=sys.stderr, flush=True)
        yield from long_contexts(options, options.contexts_dtype)


def _in_processes(count: int) -> list[dict[str, Any]]:
    """The results of this very command in `count` processes, of each the median one."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.json" for number in range(count)]
        for path in files:
            command = [sys.executable, "-m", "benchmarks.run_speed", *sys.argv[1:], "--processes", "1"]
            subprocess.run([*command, "--json", str(path)], check=True, stdout=subprocess.DEVNULL)
        return median_results([json.loads(path.read_text(encoding="utf-8"))["results"] for path in files])


def main() -> None:
    """Measure, print a table, and write JSON when asked."""
    options, given = _options()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    rows = _in_processes(given.processes) if given.processes > 1 else list(results(options))
    report = {"conditions": conditions() | {"clock": options.clock}, "results": rows}
    if given.json:
        report = add_to(given.json, report)
    print_report(report)


if __name__ == "__main__":
    main()
