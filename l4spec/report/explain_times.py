"""The arithmetic of times and money in a plan: parts that add up, and every rate and price from the plan's numbers."""

from collections.abc import Iterator

from l4spec.report.page import Page, Section, Table
from l4spec.report.quantities import amount, count, per_second, seconds, usd, whole
from planners.latency_types import Latency, StepLatency, TimePart
from planners.plan_types import Plan

Rows = Iterator[tuple[str, str, str]]


def time_sections(plan: Plan) -> Page:
    """Arithmetic of every time, rate and price; empty without times."""
    latency = plan.latency
    if latency is None or (latency.prefill is None and latency.train is None):
        return ()
    rows = tuple(_training(plan, latency) if latency.train is not None else _serving(plan, latency))
    return (Section("Times and money", (Table(("quantity", "arithmetic", "value"), rows, "ll"),)),)


def _serving(plan: Plan, latency: Latency) -> Rows:
    if latency.prefill is not None:
        yield "prefill, at least", _bounds(latency.prefill), seconds(latency.prefill.bound_seconds)
    if latency.decode is not None:
        at = f"decode step at {whole(plan.deployment.context)} tokens, at least"
        yield at, _bounds(latency.decode), seconds(latency.decode.bound_seconds)
    ttft, tpot = latency.ttft_seconds, latency.time_per_output_token_seconds
    if ttft is None or tpot is None:
        return
    if plan.drafts is not None:
        yield "tokens of a step", _accepted(plan.drafts.acceptance), f"{plan.drafts.tokens_per_step:,.4g}"
    yield from _parts("TTFT", latency.ttft_parts, ttft)
    yield from _parts("TPOT", latency.time_per_output_token_parts, tpot)
    user, gpu = latency.tokens_per_second_per_user, latency.tokens_per_second_per_gpu
    if user is None or gpu is None:
        return
    output, gpus = latency.output_tokens, plan.layout.num_devices
    if output is None:
        yield "tokens/s per user", "1 / TPOT", per_second(user)
        yield "tokens/s per GPU", f"{whole(plan.deployment.batch)} sequences / TPOT / {gpus} GPUs", per_second(gpu)
    else:
        yield "tokens/s per user", f"{whole(output)} / (TTFT + {whole(output - 1)} × TPOT)", per_second(user)
        yield "tokens/s per GPU", f"tokens/s of all clients (Little's law) / {gpus} GPUs", per_second(gpu)
    if latency.usd_per_million_output_tokens is not None:
        price = f"${latency.usd_per_gpu_hour:,.2f} × 1,000,000 / ({per_second(gpu)} tokens/s × 3,600 s)"
        yield "$ per million output tokens", price, usd(latency.usd_per_million_output_tokens)


def _training(plan: Plan, latency: Latency) -> Rows:
    step, bound = latency.train, latency.step_time_bound_seconds
    if step is not None and bound is not None:
        yield "step, at least", _bounds(step), seconds(bound)
    time, rate, speed = (
        latency.step_time_seconds,
        latency.model_flops_per_second_per_gpu,
        latency.train_tokens_per_second,
    )
    if time is None or rate is None or speed is None or step is None:
        return
    asked, gpus = plan.deployment, plan.layout.num_devices
    yield "step", step_sum(step, time), seconds(time)
    if latency.after_passes_seconds is not None:
        optimizer = "the optimizer's traffic, and gradients and weights that nothing hides"
        yield "of it after the passes", optimizer, seconds(latency.after_passes_seconds)
    yield "tokens/s", f"{whole(asked.batch)} × {whole(asked.context)} tokens / step", f"{speed:,.0f}"
    flops = f"{plan.flops.train_step / 1e12:,.2f} TFLOP / step / {whole(gpus)} GPUs"
    yield "FLOP/s per GPU", flops, f"{rate / 1e12:,.1f} TFLOP/s"
    if latency.mfu is not None:
        yield (
            "MFU",
            f"{rate / 1e12:,.1f} / {rate / latency.mfu / 1e12:,.1f} TFLOP/s, the dense peak",
            f"{100 * latency.mfu:.1f} %",
        )
    if latency.gpu_hours is not None and latency.train_tokens is not None:
        run = f"{count(latency.train_tokens)} tokens / {speed:,.0f} tokens/s × {whole(gpus)} GPUs / 3,600 s"
        yield "GPU-hours", run, amount(latency.gpu_hours)
        if latency.usd is not None:
            hours = f"{amount(latency.gpu_hours)} GPU-hours"
            yield "$ of the run", f"{hours} × ${latency.usd_per_gpu_hour:,.2f}", f"${amount(latency.usd)}"


def step_sum(step: StepLatency, time: float) -> str:
    """A training step as a sum: kinds of layers, other time, and waiting for data parallelism."""
    estimate, busy = step.estimate_seconds or 0.0, sum(kind.estimate_seconds or 0.0 for kind in step.by_kind)
    kinds = f"{seconds(busy)} of all kinds of layers, one after the other"
    besides = (
        f"{seconds(estimate - busy)} of exchanges that nothing hides, of uneven stages and of the pipeline's bubble"
    )
    longer = "; links of data parallelism take longer" if time > estimate * (1 + 1e-9) else ""
    return f"{kinds} + {besides}{longer}" if estimate > busy * (1 + 1e-9) else f"{kinds}{longer}"


def _accepted(acceptance: tuple[float, ...]) -> str:
    """`1 + 0.85 + 0.85 × 0.7`: a draft counts where it and all before it are accepted."""
    shares = [f"{share:g}" for share in acceptance]
    return " + ".join(["1", *(" × ".join(shares[: place + 1]) for place in range(len(shares)))])


def _bounds(step: StepLatency) -> str:
    """`20 ms compute (ffn) + 3 ms memory (head)`: each kind with the resource that bounds it."""
    kinds = sorted(step.by_kind, key=lambda kind: -kind.bound_seconds)
    return " + ".join(f"{seconds(kind.bound_seconds)} {kind.bounded_by} ({kind.name})" for kind in kinds)


def _parts(name: str, parts: tuple[TimePart, ...], total: float) -> Rows:
    yield (
        name,
        " + ".join(f"{seconds(part.seconds)} {part.what}" for part in parts if part.seconds) or "-",
        seconds(total),
    )
