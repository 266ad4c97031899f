"""Estimated times of the layouts that fit, by which `planners.search.objective` chooses: imported where one fits.

Estimates are noisy, and the smallest of many is too small: layouts whose time is within the estimate's median error of
the best one are taken as equally fast. Layouts unlike every measured row are compared with `caution`.
"""

from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div
from planners.deployment import Deployment
from planners.plan_types import BY_TIME, LayoutRow
from planners.search.caution import caution, errors_of
from planners.search.objective import MOST_TIMED
from planners.timing.chunks import further_seconds
from planners.timing.drafts import decode_seconds
from planners.timing.latency_report import Service, model_of, service
from planners.timing.layer_demand import Step
from planners.timing.step import StepModel


def timed(deployment: Deployment, rows: tuple[LayoutRow, ...]) -> tuple[LayoutRow, ...]:
    """The rows with the estimated times of those that fit, of very many the first `MOST_TIMED`.

    Without factors, on a calibrated machine, or beside the host's memory as they are.
    """
    cluster = deployment.cluster
    if (
        cluster is None
        or deployment.setting.host is not None
        or cluster.hardware.eager is not None
        or ((deployment.request.cp or 1) > 1 and deployment.setting.train is None)
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
