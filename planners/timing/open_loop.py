"""Time to first token and per token of an open loop: requests arrive at random, at a given rate (Poisson).

A closed loop's clients wait for their answers; here arrivals do not, so prompts bunch: the queue for prompts is that of
steps which each read what arrived during the one before. Compared with the simulator in
tests/planners/simulate/test_open_loop.py.
"""

import math
from dataclasses import replace

from planners.timing.closed_loop import Load, MixedSteps, Served, mixed_steps, serve
from planners.timing.drafts import tokens_per_step
from planners.timing.step import StepModel


def open_loop(model: StepModel, load: Load, rate: float) -> Served:
    """Requests that arrive at `rate` per second at random (Poisson), whatever the service.

    By Little's law rate * output * TPOT decode, and a request decodes beside that many others (PASTA). The fixed point
    is approached from an empty system; a rate beyond the capacity, which must be finite, ends at its closed loop.
    """
    running = 1.0
    for _ in range(60):
        steps = mixed_steps(model, load, running, _read_together(load, running))
        if (served := _at_random(model, load, steps, rate)) is None:
            break
        following = 1 + rate * load.output * served.tpot
        if abs(following - running) < 1e-4 * running:
            return served
        running = (running + following) / 2
        if running > load.capacity:
            break
    return serve(model, replace(load, concurrency=load.capacity, waves=None))


def _at_random(model: StepModel, load: Load, steps: MixedSteps, rate: float) -> Served | None:
    """Service of requests that find such steps; None if their prompts alone take all the time.

    A step reads the prompts that arrived during the one before: T' = step + prefill * Poisson(rate * T). So with
    busy = rate * prefill: E[T] = step / (1 - busy), Var[T] = busy * prefill * E[T] / (1 - busy^2), and an arrival meets
    a step of E[T] + Var[T] / E[T]. It waits for half of that, and the prompts that arrived with it are read beside its
    own. So long a step lets more prompts come, and those more, which the first of its tokens wait for. Leaves out the
    token budget of a step, by which many waiting prompts take several.
    """
    busy = rate * steps.prefill
    if busy >= 1:
        return None
    mean = steps.seconds / (1 - busy)
    met = min(1.0, steps.running - 1) * steps.seconds / (1 - busy) + busy * steps.prefill / (1 - busy**2)
    reading = steps.seconds + steps.prefill + busy * met
    waited = 0.5 * met + steps.between_chunks
    following = max(0.0, reading - mean) * busy / (1 - busy)
    tpot = (mean + following / load.output) / tokens_per_step(model)
    ttft = model.request_seconds + waited + reading
    return Served(ttft, tpot, rate, steps.running, steps.decode, steps.prefill, waited)


def _read_together(load: Load, running: float) -> float:
    """Mean number of prompts in a step that reads any, if each step ends 1 / output of the others: E[k | k > 0]."""
    mean = (running - 1) / load.output
    together = mean / -math.expm1(-mean) if mean > 0 else 1.0
    return max(1.0, min(together, load.chunk / load.prompt))
