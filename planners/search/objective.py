"""Choice among layouts that fit: by estimated time, cost or memory.

Estimates are noisy, and the smallest of many is too small: layouts whose time is within the estimate's median error of
the best one are taken as equally fast. Of these the one with the most free memory is planned, in training the simplest
of those that leave room. Layouts unlike every measured row are compared with `caution`.
"""

from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div
from planners.deployment import Deployment
from planners.plan_types import BY_TIME, ChosenBy, LayoutRow, Objective
from planners.search.caution import caution, errors_of
from planners.search.layouts import by_memory
from planners.timing.chunks import further_seconds
from planners.timing.drafts import decode_seconds
from planners.timing.latency_report import Service, model_of, service
from planners.timing.layer_demand import Step
from planners.timing.step import StepModel

MOST_TIMED = 128
"""Layouts that are timed at most: of 720,720 GPUs thousands fit. `_place_in_line` has those that are timed first."""


def timed(deployment: Deployment, rows: tuple[LayoutRow, ...]) -> tuple[LayoutRow, ...]:
    """The rows with the estimated times of those that fit, of very many the first `MOST_TIMED`.

    Without factors, on a calibrated machine, or beside the host's memory as they are.
    """
    cluster = deployment.cluster
    if (
        cluster is None
        or deployment.setting.host is not None
        or cluster.hardware.eager is not None
        or (deployment.request.cp or 1) > 1
    ):
        return rows
    fitting = sorted((row for row in rows if row.fits), key=lambda row: _place_in_line(deployment, row.layout))
    chosen = {row.layout for row in fitting[:MOST_TIMED]}
    with_time = _serving_row if deployment.setting.train is None else _training_row
    return _marked(deployment, tuple(with_time(deployment, row) if row.layout in chosen else row for row in rows))


def _place_in_line(deployment: Deployment, layout: Layout) -> tuple[bool, int]:
    """Sort key of layouts to time: those that need no sharing of weights and gradients first, then by replicas."""
    replica = layout.num_devices // layout.dp
    if deployment.setting.train is None:
        return False, replica
    from planners.search.training_choice import needs_sharing

    return needs_sharing(deployment, layout), replica


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


def _marked(deployment: Deployment, rows: tuple[LayoutRow, ...]) -> tuple[LayoutRow, ...]:
    """The rows, those marked whose time is within the estimate's median error of the best one's.

    In training of those that leave room, where any does.
    """
    if deployment.request.objective not in BY_TIME:
        return rows
    known = [row for row in rows if row.fits and _cost(deployment, row) is not None]
    if deployment.setting.train is not None:
        from planners.search.training_choice import is_comfortable

        known = [row for row in known if is_comfortable(deployment, row)] or known
    if not known:
        return rows
    costs = {row.layout: _cautious(deployment, row) for row in known}
    limit = min(costs.values()) * (1 + errors_of(deployment)[0])
    as_fast = {layout for layout, cost in costs.items() if cost <= limit}
    return tuple(row.model_copy(update={"as_fast": True}) if row.layout in as_fast else row for row in rows)


def _cautious(deployment: Deployment, row: LayoutRow) -> float:
    """The cost as it is compared."""
    stage = row.training.zero_stage if row.training else 0
    return (_cost(deployment, row) or 0.0) * caution(deployment, row.layout, stage)


def _cost(deployment: Deployment, row: LayoutRow) -> float | None:
    """Value that the objective minimizes; None if it is unknown."""
    if deployment.setting.train is not None:
        return row.step_time_seconds
    if row.time_per_output_token_seconds is None or row.ttft_seconds is None:
        return None
    if deployment.request.objective == "cheapest":
        return 1 / (row.tokens_per_second_per_gpu or 1e-9)
    output = deployment.output_tokens
    if output is None:
        return row.time_per_output_token_seconds
    return row.ttft_seconds + (output - 1) * row.time_per_output_token_seconds


def _training_row(deployment: Deployment, row: LayoutRow) -> LayoutRow:
    from planners.search.training_choice import training_row

    return training_row(deployment, row)


def _serving_row(deployment: Deployment, row: LayoutRow) -> LayoutRow:
    model = model_of(deployment, row.layout)
    if model.unknown or model.efficiency is None:
        return row
    given = service(model, deployment, row.max_batch, _alone(model, deployment))
    return _with(row, given)


def _with(row: LayoutRow, given: Service) -> LayoutRow:
    return row.model_copy(
        update={
            "ttft_seconds": given.ttft,
            "time_per_output_token_seconds": given.tpot,
            "tokens_per_second_per_gpu": given.tokens_per_second_per_gpu,
        }
    )


def _alone(model: StepModel, deployment: Deployment) -> tuple[float, float]:
    """Seconds of the prefill of one prompt, and of the decode step of the whole batch."""
    layout, prompt = model.layout, deployment.prompt_tokens
    sequences = ceil_div(deployment.batch, layout.dp * layout.ep)
    decode = Step(decode=ceil_div(sequences, layout.pp), context=deployment.context)
    prefill = Step(prompt_tokens=prompt, prompt_length=prompt)
    further = further_seconds(prompt, deployment.setting.prefill_chunk, model.seconds)
    return model.seconds(prefill) + further, decode_seconds(model, decode)
