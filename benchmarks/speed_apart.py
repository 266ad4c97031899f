"""A training step of each side in a process of its own, for models of which only one side fits into memory."""

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.speed_limits import plain_matmuls
from benchmarks.speed_models import Routing, forward_flops, ours, reference, spec_of, token_ids
from benchmarks.speed_timing import Clock
from benchmarks.speed_train import PASSES, check_alike, gradient_norm, our_step, their_step
from l4spec.layers.common.kept_memory import kept_memory

Side = Literal["train", "transformers"]
NUM_STEPS: dict[Side, int] = {"train": 3, "transformers": 1}
"""Steps that a process is timed for, of which the median counts; one of transformers, which takes long."""
WARM_STEPS: dict[Side, int] = {"train": 2, "transformers": 1}
"""Steps before: the optimizer makes its state in the first, and ours finds the first's memory in the second."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""
USUAL_TOKENS = 1024
"""Tokens of a step that a result's name leaves out."""
SIDES: tuple[Side, Side] = ("train", "transformers")


@dataclass(frozen=True, slots=True)
class Apart:
    """A comparison to run: model, overrides, tokens of a step, threads, clock.

    With `keeps_freed` the C library of both sides keeps all memory that is freed.
    """

    name: str
    dtype: str
    overrides: Sequence[str]
    tokens: int
    threads: int
    clock: Clock = "wall"
    keeps_freed: bool = False


@dataclass(frozen=True, slots=True)
class SideStep:
    """One process: loss and gradients' norm of its first step, seconds of later ones, and its largest memory.

    The process of our side also times the forward pass's matmuls run alone.
    """

    loss: float
    norm: float
    seconds: float
    peak_bytes: int
    matmul_seconds: float = 0.0
    matmul_flops: int = 0
    step_flops: int = 0


def train_apart(asked: Apart, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """A result as `run_speed`'s part `train`; in each round one process of each side, one after the other.

    Both build the weights that the names of tensors determine, so that losses and gradients' norms must agree. Exits
    where they do not. A process that is done gives its memory back: never are both sides in memory.
    """
    steps: dict[Side, list[SideStep]] = {side: [] for side in SIDES}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for number in range(rounds):
            for side in SIDES:
                steps[side].append(pool.submit(one_side, asked, side).result())
                progress(f"round {number + 1}, {side}: {steps[side][-1].seconds:.2f} s")
            check_alike("losses", *(steps[side][-1].loss for side in SIDES))
            check_alike("gradients' norms", *(steps[side][-1].norm for side in SIDES))
    kept = ", freed memory kept" if asked.keeps_freed else ""
    length = "" if asked.tokens == USUAL_TOKENS else f", {asked.tokens} tokens"
    return {"part": f"train{length}{kept}", **_compared(steps["train"], steps["transformers"])}


def _compared(mine: Sequence[SideStep], theirs: Sequence[SideStep]) -> dict[str, Any]:
    first = mine[0]
    matmuls = [step.matmul_seconds for step in mine]
    share = statistics.median(alone / step.seconds for alone, step in zip(matmuls, mine, strict=True))
    return {
        "seconds": statistics.median(step.seconds for step in mine),
        "transformers_seconds": statistics.median(step.seconds for step in theirs),
        "times_faster": statistics.median(b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True)),
        "matmul_flops_per_second": first.matmul_flops / statistics.median(matmuls),
        "of_matmul_rate": first.step_flops / first.matmul_flops * share,
        "losses": {"train": [step.loss for step in mine], "transformers": [step.loss for step in theirs]},
        "gradient_norms": {"train": [step.norm for step in mine], "transformers": [step.norm for step in theirs]},
        "peak_bytes": {
            side: max(s.peak_bytes for s in steps) for side, steps in (("train", mine), ("transformers", theirs))
        },
        "seconds_of_rounds": {
            "train": [step.seconds for step in mine],
            "transformers": [step.seconds for step in theirs],
            "matmuls": matmuls,
        },
    }


def one_side(asked: Apart, side: Side) -> SideStep:
    """Training steps of one side, in this process."""
    if asked.keeps_freed:
        _keep_freed()
    torch.set_num_threads(asked.threads)
    model: Any = ours(spec_of(asked.name, asked.overrides), "cpu", asked.dtype)
    ids = token_ids(model, 1, asked.tokens)
    about = _limits(model, ids, asked) if side == "train" else {}
    module, step = our_step(model, ids) if side == "train" else their_step(reference(model), ids)
    del model
    with kept_memory():
        losses = [step() for _ in range(WARM_STEPS[side])]
        norm = gradient_norm(module)
        seconds = statistics.median(_seconds(step, asked.clock) for _ in range(NUM_STEPS[side]))
    return SideStep(losses[0], norm, seconds, _peak_bytes(), **about)


def _limits(model: Any, ids: Tensor, asked: Apart) -> dict[str, Any]:
    """The forward pass's matmuls run alone, and FLOPs of a step, for `SideStep`."""
    matmuls, flops = plain_matmuls(model, asked.tokens, Routing.of(model, ids))
    with torch.no_grad():
        alone = statistics.median(_seconds(matmuls, asked.clock) for _ in range(3))
    step_flops = PASSES * forward_flops(model, 1, asked.tokens)
    return {"matmul_seconds": alone, "matmul_flops": flops, "step_flops": step_flops}


def _keep_freed() -> None:
    """Let glibc keep what is freed instead of giving it back to the system."""
    mallopt = ctypes.CDLL(None).mallopt
    if not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1)):
        raise SystemExit("mallopt refused its settings")


def _seconds(run: Callable[[], object], clock: Clock) -> float:
    now = time.perf_counter if clock == "wall" else time.process_time
    start = now()
    run()
    return now() - start


def _peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
