"""Choice among layouts that fit: by estimated time, cost or memory.

Of layouts that are equally fast (`planners.search.row_times`) the one with the most free memory is planned, in training
the simplest of those that leave room.
"""

from l4spec.sharding.layout import Layout
from planners.deployment import Deployment
from planners.plan_types import BY_TIME, ChosenBy, LayoutRow, Objective
from planners.search.layouts import by_memory

MOST_TIMED = 128
"""Layouts that are timed at most: of 720,720 GPUs thousands fit. `row_times` has the order in which they are timed."""


def untimed(rows: tuple[LayoutRow, ...]) -> int:
    """Number of fitting layouts that `timed` left out because there are too many."""
    fitting = sum(row.fits for row in rows)
    is_timed = any(row.ttft_seconds is not None or row.step_time_seconds is not None for row in rows)
    return fitting - MOST_TIMED if is_timed and fitting > MOST_TIMED else 0


def choose(deployment: Deployment, rows: tuple[LayoutRow, ...]) -> tuple[LayoutRow, ChosenBy]:
    """The best row for the objective, and the criterion of the choice: `time` or `memory`.

    fastest: the shortest request (without output tokens the shortest decode step; in training the shortest step).
    cheapest: the most tokens of a GPU. Where no time is estimated the simplest; for the other objectives by memory.
    """
    objective = deployment.request.objective
    close = [row for row in rows if row.as_fast]
    if objective not in BY_TIME or not close:
        memory: Objective = "simplest" if objective in BY_TIME else objective
        training = deployment.setting.train is not None
        row = by_memory(rows, memory, deployment.gpus_per_host, training=training, batch=deployment.batch)
        return row, "memory"
    if deployment.setting.train is not None:
        return min(close, key=lambda row: _simplicity(row.layout, deployment.gpus_per_host)), "time"
    return min(close, key=lambda row: (row.total_bytes, row.layout.pp, row.layout.ep, -row.layout.tp)), "time"


def _simplicity(layout: Layout, gpus_per_host: int) -> tuple[int, ...]:
    """The smaller the less there is to go wrong: no pipeline, no exchange between hosts, small replicas."""
    exchanging = layout.tp * layout.ep
    return layout.pp, max(exchanging, gpus_per_host), exchanging, layout.tp
