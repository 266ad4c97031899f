"""Choice of memory settings of training that are left open: ZeRO stage, checkpointing and micro-batch per layout.

The fastest that leaves `ROOM` of the device free; if nothing does, the fastest that fits. Exact: a setting is skipped
only if a bound of its time is no better than a time that was found. Times are compared with `caution`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from l4spec.layers.common.checkpointing import CHECKPOINTING
from l4spec.sharding.layout import Layout
from planners.deployment import Deployment
from planners.device.memory import place
from planners.device.training_state import TrainSetting
from planners.plan_types import BY_TIME, LayoutRow
from planners.request import PlanRequest
from planners.search.caution import caution
from planners.search.layouts import row_of
from planners.timing.machine import Machine
from planners.timing.training_report import TimedTraining

ZERO_STAGES = (1, 2, 3)
"""Stage 0 has the traffic of stage 1 and needs more memory."""
MICRO_BATCHES = (1, 2, 4, 8)
ROOM = 0.1
"""Share of the device that a comfortable setting leaves free: fragmentation and buffers are in no plan."""


@dataclass(frozen=True, slots=True)
class _Tried:
    setting: TrainSetting
    seconds: float
    compared: float
    """Seconds times the setting's caution."""
    room: int
    comfortable: bool
    place_in_line: int
    """Among `settings_of`."""

    @property
    def rank(self) -> tuple[bool, float, int, int]:
        """The smaller the better; equal times by the room that is left where none is comfortable."""
        return not self.comfortable, self.compared, 0 if self.comfortable else -self.room, self.place_in_line


def settings_of(deployment: Deployment) -> Iterator[TrainSetting]:
    """Every setting that the request allows, the fastest inside a replica and the least shared first.

    For an objective of memory the one of least memory alone.
    """
    train, request = deployment.setting.train, deployment.request
    assert train is not None
    if request.objective not in BY_TIME:
        yield train
        return
    micro_batches = MICRO_BATCHES if request.micro_batch is None else (train.micro_batch,)
    kinds = CHECKPOINTING if request.checkpointing is None else (train.checkpointing,)
    zero_stages = ZERO_STAGES if request.zero_stage is None else (train.zero_stage,)
    for kind, micro_batch, stage in product(kinds, micro_batches, zero_stages):
        yield replace(train, checkpointing=kind, micro_batch=micro_batch, zero_stage=stage)


def left_open(request: PlanRequest) -> tuple[str, ...]:
    """Options of training that are chosen with the layout."""
    if request.mode == "serve" or request.gpus is None:
        return ()
    return tuple(name for name in ("zero_stage", "checkpointing", "micro_batch") if getattr(request, name) is None)


def with_setting(deployment: Deployment, train: TrainSetting) -> Deployment:
    """The deployment whose training keeps its state so."""
    return deployment._replace(setting=deployment.setting._replace(train=train))


def as_in_row(deployment: Deployment, row: LayoutRow) -> Deployment:
    """The deployment whose training keeps its state as a row's does."""
    train, kept = deployment.setting.train, row.training
    if train is None or kept is None:
        return deployment
    chosen = replace(
        train,
        zero_stage=kept.zero_stage,
        checkpointing=kept.activation_checkpointing,
        micro_batch=kept.micro_batch,
    )
    return with_setting(deployment, chosen)


def is_comfortable(deployment: Deployment, row: LayoutRow) -> bool:
    """True if a row leaves `ROOM` of the device free."""
    budget = place(deployment.setting, row.layout).budget
    return budget is None or budget.usable_bytes - row.total_bytes >= ROOM * budget.usable_bytes


def needs_sharing(deployment: Deployment, layout: Layout) -> bool:
    """True if a layout fits only with ZeRO 2 or 3, under the allowed settings."""
    train = deployment.setting.train
    assert train is not None
    if deployment.request.zero_stage is not None:
        return False
    alone = with_setting(deployment, replace(train, zero_stage=ZERO_STAGES[0]))
    return not place(alone.setting, layout).fits(deployment.context, deployment.batch)


def training_row(deployment: Deployment, row: LayoutRow) -> LayoutRow:
    """A row that fits with the least memory, with its fastest setting; as it is where no time is estimated."""
    best = _fastest(deployment, row.layout)
    if best is None:
        return row
    faster = row_of(with_setting(deployment, best.setting), row.layout)
    return faster.model_copy(update={"step_time_seconds": best.seconds})


def _fastest(deployment: Deployment, layout: Layout) -> _Tried | None:
    """The best setting, tried in the order of their bounds; None if no time is estimated."""
    cluster = deployment.cluster
    assert cluster is not None, "time is of GPUs"
    machine, least = Machine(cluster.hardware, cluster.gpus_per_host), 0.0
    passes: dict[tuple[str, int], float] = {}
    bounded: list[tuple[float, int, TimedTraining]] = []
    for place_in_line, train in enumerate(settings_of(deployment)):
        timed = TimedTraining(with_setting(deployment, train), machine, layout)
        key = (train.checkpointing, train.micro_batch)
        if key not in passes:
            seconds = timed.seconds_of_passes()
            if seconds is None:
                return None
            passes[key] = seconds
            least = timed.seconds_after_passes() if place_in_line == 0 else least  # later settings send no less
        bound = (passes[key] + least) * caution(deployment, layout, train.zero_stage)
        bounded.append((bound, place_in_line, timed))
    best: _Tried | None = None
    for bound, place_in_line, timed in sorted(bounded, key=lambda each: each[:2]):
        if best is not None and best.comfortable and (bound, place_in_line) > (best.compared, best.place_in_line):
            continue
        key = (timed.train.checkpointing, timed.train.micro_batch)
        tried = _tried(timed, passes[key], place_in_line)
        if tried is not None and (best is None or tried.rank < best.rank):
            best = tried
    return best


def _tried(timed: TimedTraining, passes: float, place_in_line: int) -> _Tried | None:
    """Result of a setting whose passes take this many seconds; None if it does not fit."""
    deployment, train = timed.deployment, timed.train
    placement = place(deployment.setting, timed.layout)
    room, budget = placement.room(deployment.context, deployment.batch), placement.budget
    if room < 0:
        return None
    seconds = timed.step_seconds(passes)
    return _Tried(
        train,
        seconds,
        compared=seconds * caution(deployment, timed.layout, train.zero_stage),
        room=room,
        comfortable=budget is None or room >= ROOM * budget.usable_bytes,
        place_in_line=place_in_line,
    )
