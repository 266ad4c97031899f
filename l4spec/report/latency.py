"""The time that a plan takes, as lines of its page and as tables of its detail: bound, estimate, error."""

from l4spec.report.page import Facts, Lines, Section, Table
from l4spec.report.quantities import Figures, count, per_second, short_amount, usd, whole
from planners.latency_types import Latency, LatencyError, StepLatency
from planners.plan_types import Plan
from planners.timing.likeness import ROWS_OF_A_P90


def latency_facts(plan: Plan) -> tuple[tuple[str, str], ...]:
    """The few lines of the answer's page; none without GPUs."""
    latency = plan.latency
    if latency is None or plan.fits is False:
        return ()
    if latency.prefill is None and latency.train is None:
        return (("time", f"unknown: {latency.reason}"),)
    figures = Figures(bool(plan.estimates.work))
    if latency.train is not None:
        return _training_facts(latency, figures)
    return (*_serving_facts(latency, figures), *_requests_in_flight(plan, latency))


def _requests_in_flight(plan: Plan, latency: Latency) -> tuple[tuple[str, str], ...]:
    """Mean number of requests in flight at an arrival rate, by Little's law, beside the number that fits."""
    rate, first, following = plan.request.get("rate"), latency.ttft_seconds, latency.time_per_output_token_seconds
    if rate is None or first is None or following is None or latency.output_tokens is None:
        return ()
    number = rate * (first + (latency.output_tokens - 1) * following)
    mark = Figures(bool(plan.estimates.work)).mark
    mean = f"{mark}{per_second(number)} requests on average at {rate:g} a second, with TTFT and TPOT as estimated"
    return (("in flight", f"{mean}; {whole(plan.max_batch or 0)} fit"),)


def _serving_facts(latency: Latency, figures: Figures) -> tuple[tuple[str, str], ...]:
    first = _beside(figures, latency.ttft_seconds, latency.ttft_bound_seconds, _error(latency, "ttft"))
    estimate, bound = latency.time_per_output_token_seconds, latency.time_per_output_token_bound_seconds
    token = _beside(figures, estimate, bound, _error(latency, "tpot"))
    rows = [("TTFT", f"{first}; prompt of {whole(latency.prompt_tokens or 0)} tokens"), ("TPOT", token)]
    if latency.tokens_per_second_per_user is not None and latency.tokens_per_second_per_gpu is not None:
        mark, user, gpu = figures.mark, latency.tokens_per_second_per_user, latency.tokens_per_second_per_gpu
        of_user, of_gpu = f"{mark}{per_second(user)} tokens/s per user", f"{mark}{per_second(gpu)} tokens/s per GPU"
        speed = f"{of_user}, {of_gpu}{_cost_of_tokens(latency)}"
        span = "while decoding" if latency.output_tokens is None else "prompt included"
        rows.append(("speed", f"{speed}, {span} ({_factors_of(latency)})"))
    return (*rows, *_origin(latency))


def _factors_of(latency: Latency) -> str:
    """Source of an estimate's factors: an engine, or measurements of this machine."""
    return "measured pieces of our own module" if latency.by_module else f"factors of {latency.factors}"


def _cost_of_tokens(latency: Latency) -> str:
    price = latency.usd_per_million_output_tokens
    return "" if price is None else f", {usd(price)} per million output tokens"


def _training_facts(latency: Latency, figures: Figures) -> tuple[tuple[str, str], ...]:
    mark, estimate, bound = figures.mark, latency.step_time_seconds, latency.step_time_bound_seconds
    rows = [("step", _beside(figures, estimate, bound, _error(latency, "step_time")))]
    rate, speed = latency.model_flops_per_second_per_gpu, latency.train_tokens_per_second
    if rate is not None and speed is not None and latency.mfu is not None:
        flops = f"{mark}{rate / 1e12:,.0f} TFLOP/s per GPU, {mark}{100 * latency.mfu:.1f} % MFU"
        rows.append(("speed", f"{mark}{speed:,.0f} tokens/s, {flops}"))
    if latency.gpu_hours is not None and latency.train_tokens is not None:
        price = latency.usd_per_gpu_hour
        cost = "" if latency.usd is None else f", ${short_amount(latency.usd)} at ${price:,.2f} per hour"
        rows.append(
            (
                "training run",
                f"{count(latency.train_tokens)} tokens take {mark}{short_amount(latency.gpu_hours)} GPU-hours{cost}",
            )
        )
    return (*rows, *_origin(latency))


def _beside(figures: Figures, estimate: float | None, bound: float | None, error: LatencyError | None) -> str:
    """`12.3 ms estimated, at least 9.1 ms`, with the range and the median that the errors of left-out rows give."""
    least = "" if bound is None else f"at least {figures.seconds(bound)}"
    if estimate is None:
        return least
    if error is None:
        return f"{figures.seconds(estimate)} estimated, {least}"
    low, high = time_range(bound or 0.0, estimate, error)
    span = f"{figures.seconds(low)} {'or more' if high is None else f'to {figures.seconds(high)}'}"
    known = f"{_upper_word(error)} {span}, median error {100 * error.median:.0f} %{_judged_rows(error)}"
    return f"{figures.seconds(estimate)} estimated ({known}), {least}"


def time_range(bound: float, estimate: float, error: LatencyError) -> tuple[float, float | None]:
    """Range of the measured time for |estimate - measured| / measured <= p90: from e / (1 + p90) to e / (1 - p90).

    Never below the bound; an error of 100 % or more leaves the upper end open.
    """
    low = max(bound, estimate / (1 + error.p90))
    return (low, estimate / (1 - error.p90)) if error.p90 < 1 else (low, None)


def error_words(error: LatencyError) -> str:
    """`median error 4 %, p90 20 % over 32 measured rows of its kind`; of fewer than 20 rows the largest error."""
    return f"median error {100 * error.median:.0f} %, {_upper_word(error)} {100 * error.p90:.0f} %{_judged_rows(error)}"


def _upper_word(error: LatencyError) -> str:
    return "largest" if _upper_name(error) == "largest" else "p90"


def _judged_rows(error: LatencyError) -> str:
    kind = "of its kind" if error.alike else "of other kinds"
    return f" over {error.num_rows} measured rows {kind}" if error.alike or error.unlike else ""


def _error(latency: Latency, metric: str) -> LatencyError | None:
    return next((error for error in latency.errors if error.metric == metric), None)


def _origin(latency: Latency) -> tuple[tuple[str, str], ...]:
    """Cautions about the times: no factors at all, factors of other hardware, or devices without work."""
    remarks = (latency.reason,) if latency.reason else latency.cautions
    return (("caution", "; ".join(remarks)),) if remarks else ()


def latency_sections(plan: Plan) -> tuple[Section, ...]:
    """Every step by kind of layer, with the bounding resource and the source of the factors."""
    latency = plan.latency
    if latency is None or (latency.prefill is None and latency.train is None):
        return ()
    sections, figures = [], Figures(bool(plan.estimates.work))
    for title, step in (
        ("Time of a prefill, by kind of layer", latency.prefill),
        ("Time of a decode step, by kind of layer", latency.decode),
        ("Time of a training step, by kind of layer", latency.train),
    ):
        if step is not None:
            sections.append(Section(title, (kind_table(step, figures),)))
    lines = (*(f"source: {source}" for source in latency.sources), *latency.cautions, *latency.notes)
    if lines:
        sections.append(Section("Where the times come from", (Lines(lines), Facts(error_facts(latency)))))
    return tuple(sections)


def error_facts(latency: Latency) -> tuple[tuple[str, str], ...]:
    """Errors of each estimate on rows that it was not fitted on."""
    return tuple(
        (
            f"error of {error.metric}",
            f"median {100 * error.median:.1f} %, {_upper_name(error)} {100 * error.p90:.1f} % over {error.num_rows} "
            + _judged_on(error),
        )
        for error in latency.errors
    )


def _upper_name(error: LatencyError) -> str:
    return "largest" if error.alike and error.num_rows < ROWS_OF_A_P90 else "90th percentile"


def _judged_on(error: LatencyError) -> str:
    if error.num_sources:
        words = f"published figures, each of {error.num_sources} series left out of the fit in turn"
        like = f"; like this plan in {', '.join(error.alike)}" if error.alike else ""
        return words + like + (f", not in {', '.join(error.unlike)}" if error.unlike else "")
    return "random models that nothing was calibrated on"


def kind_table(step: StepLatency, figures: Figures) -> Table:
    """A step by kind of layer: seconds by resource, the bounding resource, and the estimate."""
    rows = [
        (
            kind.name,
            whole(kind.count),
            figures.seconds(kind.compute_seconds),
            figures.seconds(kind.memory_seconds),
            figures.seconds(kind.links_seconds),
            kind.bounded_by,
            figures.seconds(kind.bound_seconds),
            "-" if kind.estimate_seconds is None else figures.seconds(kind.estimate_seconds),
        )
        for kind in step.by_kind
    ]
    total = "-" if step.estimate_seconds is None else figures.seconds(step.estimate_seconds)
    rows.append(("step", "", "", "", "", step.bounded_by, figures.seconds(step.bound_seconds), total))
    return Table(
        ("layers", "count", "compute", "memory", "links", "bound by", "at least", "estimate"), tuple(rows), "lrrrrl"
    )
