"""Additional time of a prefill in chunks: each is a step of its own, which reads the weights again.

A prompt that fits in one step is planned as one, and factors were fitted on such prompts. A longer one, or one that is
read in smaller chunks, takes what its steps take more than a single step would.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from l4spec.units import ceil_div
from planners.latency_types import KindLatency, StepLatency
from planners.timing.layer_demand import Step
from planners.timing.step import StepModel

MOST_TIMED = 16
"""Number of full chunks that are timed; between them the time is interpolated linearly in the cached tokens."""


def further_steps(prompt: int, chunk: int) -> int:
    """Steps that a prompt takes in chunks of `chunk` tokens beyond the first."""
    return ceil_div(prompt, chunk) - 1


def further_seconds(prompt: int, chunk: int, seconds: Callable[[Step], float], decode: float = 0.0) -> float:
    """Seconds that those steps add beside `decode` sequences of one token each; `seconds` times per step."""
    if not further_steps(prompt, chunk):
        return 0.0
    single = seconds(_step(prompt, 0, decode, gives_token=True))
    return max(0.0, _all(prompt, chunk, seconds, decode) - single)


def in_chunks(model: StepModel, prefill: StepLatency, prompt: int, chunk: int) -> StepLatency:
    """The prefill of one prompt with its further steps as a kind of their own."""
    count = further_steps(prompt, chunk)
    if not count:
        return prefill
    bound = further_seconds(prompt, chunk, lambda step: model.time(step).bound_seconds)
    estimate = None if model.efficiency is None else further_seconds(prompt, chunk, model.seconds)
    kind = KindLatency.of(f"further chunks of {chunk:,} tokens", count, 0.0, bound, 0.0, estimate)
    kinds = sum(each.estimate_seconds or 0.0 for each in prefill.by_kind)
    return StepLatency.of((*prefill.by_kind, kind), max(0.0, (prefill.estimate_seconds or 0.0) - kinds))


def _all(prompt: int, chunk: int, seconds: Callable[[Step], float], decode: float) -> float:
    """Seconds of all steps of a prompt: full chunks at evenly spaced places, and the rest, which gives a token."""
    full = (prompt - 1) // chunk
    last = seconds(_step(prompt - full * chunk, full * chunk, decode, gives_token=True))
    places = list(_places(full))
    times = [seconds(_step(chunk, place * chunk, decode, gives_token=False)) for place in places]
    if len(places) == full:
        return last + sum(times)
    spans = zip(pairwise(places), pairwise(times), strict=True)
    between = sum((right - left) * (before + after) / 2 for (left, right), (before, after) in spans)
    return last + between + (times[0] + times[-1]) / 2


def _places(full: int) -> Iterator[int]:
    if full <= MOST_TIMED:
        yield from range(full)
        return
    for index in range(MOST_TIMED):
        yield index * (full - 1) // (MOST_TIMED - 1)


def _step(new: int, cached: int, decode: float, *, gives_token: bool) -> Step:
    return Step(
        decode=decode,
        prompt_tokens=new,
        prompt_length=cached + new,
        prompt_cached=cached,
        logit_rows=decode + gives_token,
    )
