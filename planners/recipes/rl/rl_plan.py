"""The answer of an RL phase: step times in turns and at once, shares of time at work, staleness, conditions."""

from typing import Literal

from planners.frozen import Frozen


class RlCondition(Frozen):
    """The speed-up of asynchrony if one thing were otherwise."""

    name: str
    speed_up: float


class RlPhasePlan(Frozen):
    """Online RL on the phase's GPUs; `step_seconds` is of the phase's mode.

    `speed_up` is the synchronous step over the asynchronous one, on as many GPUs. `generating` and `training` are
    shares of time at work, of replicas and the learner. Staleness counts updates between an answer's first token and
    its being learned from.
    """

    mode: Literal["synchronous", "asynchronous"]
    generation_gpus: int
    training_gpus: int
    gpus_per_replica: int
    slots: int
    answers: int
    step_seconds: float
    synchronous_seconds: float
    asynchronous_seconds: float
    speed_up: float
    generating: float
    training: float
    mean_staleness: float
    max_staleness: int
    push_seconds: float
    conditions: tuple[RlCondition, ...]
    notes: tuple[str, ...]
