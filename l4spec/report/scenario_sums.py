"""Each number of a simulated scenario with its formula, source and error."""

from collections.abc import Iterator
from dataclasses import dataclass

from l4spec.report.opened import opened
from l4spec.report.page import Block, Details, Section
from l4spec.report.quantities import Figures, amount, per_second, seconds, usd, whole
from l4spec.units import gib
from planners.simulate.result_types import ServerResult, SimulationResult
from planners.simulate.scenario_plan import ScenarioPlan, ServerPlan

_ALONE = "the steps of a prompt, then one for each further token, by the step times of a server that runs nothing else"
_STEPS = "simulated step by step: see what the times rest on, at the end"


@dataclass(frozen=True, slots=True)
class ScenarioOrigins:
    """Sources and errors of a scenario's plan and its simulation."""

    plan: ScenarioPlan
    result: SimulationResult
    sources: tuple[str, ...]

    @property
    def figures(self) -> Figures:
        """Number formats, with a mark for numbers that depend on estimated fields."""
        return Figures(bool(self.result.estimated))

    @property
    def source(self) -> str:
        """Sources of the scenario's own numbers."""
        return "the scenario: " + ("; ".join(self.sources) or "it names no source")

    @property
    def given(self) -> str:
        """The error of numbers that follow from the scenario alone."""
        if not self.result.estimated:
            return "none: as the scenario says"
        return f"unknown in what nobody has published: {', '.join(self.result.estimated)}"

    @property
    def time_error(self) -> str:
        """Error of step times on published rows, from the servers' bases."""
        lines = dict.fromkeys(line for server in self.result.servers for line in server.basis if " error " in line)
        known = "; ".join(lines) or "unknown: no measured row is like this"
        return f"{known}; besides {self.given}" if self.result.estimated else known


def scenario_sums(rest: ScenarioOrigins) -> Iterator[Section]:
    """Latencies, rates, servers and one request alone, each number to open."""
    yield Section("Every number of the simulation", (*_latencies(rest), *_rates(rest)))
    yield Section("Every number of the servers", tuple(_servers(rest)))
    yield Section("Every number of one request alone", tuple(_alone(rest)))


def _latencies(rest: ScenarioOrigins) -> Iterator[Block]:
    result, show = rest.result, rest.figures.seconds
    over = f"over {whole(result.finished)} finished requests; percentiles are linear between ranks"
    for label, values, formula in (
        ("time to first token", result.ttft, f"first token - arrival, {over}"),
        ("time per output token", result.tpot, f"(last token - first token) / (tokens of the answer - 1), {over}"),
        ("between tokens", result.itl, "gaps between tokens of a request, over all tokens of all requests"),
        ("end to end", result.e2e, f"last token - arrival, {over}"),
    ):
        if values is not None:
            shown = f"{show(values.p50)} median, {show(values.p99)} at 99 %"
            yield opened(label, shown, formula, _STEPS, rest.time_error)


def _rates(rest: ScenarioOrigins) -> Iterator[Block]:
    result, mark, error = rest.result, rest.figures.mark, rest.time_error
    span = seconds(result.duration)
    rate = f"{whole(result.finished)} finished / {span}"
    yield opened("requests", f"{mark}{result.requests_per_second:.3g}/s", rate, _STEPS, error)
    tokens = f"tokens of the finished requests' answers / {span}"
    yield opened("tokens out", f"{mark}{amount(result.output_tokens_per_second)}/s", tokens, _STEPS, error)
    each = f"{amount(result.output_tokens_per_second)} tokens/s / {whole(result.num_gpus)} GPUs"
    yield opened(
        "tokens of a GPU", f"{mark}{per_second(result.output_tokens_per_second_per_gpu)}/s", each, _STEPS, error
    )
    area = f"integral of the requests in the system over {span}, by that time"
    yield opened("in the system", f"{mark}{result.mean_in_system:.1f} requests", area, _STEPS, error)
    for level in result.levels:
        met = f"requests finished within {seconds(level.limit)} / {whole(result.requests)} requests"
        yield opened(f"within {level.name.upper()}", f"{mark}{100 * level.met:.1f} %", met, _STEPS, error)
    if result.usd is not None and result.usd_per_million_output_tokens is not None:
        price = f"{usd(result.usd)} of all GPUs in {span} / tokens of the answers × 1,000,000"
        value = f"{mark}{usd(result.usd_per_million_output_tokens)} a million output tokens"
        yield opened("cost", value, price, _prices(rest), error)


def _prices(rest: ScenarioOrigins) -> str:
    """Source of GPU prices: the last line of a server's basis."""
    lines = (server.basis[-1] for server in rest.plan.servers if server.usd_per_hour is not None)
    return "; ".join(dict.fromkeys(lines)) or rest.source


def _servers(rest: ScenarioOrigins) -> Iterator[Block]:
    plan = rest.plan
    terms = [
        f"{server.replicas} × {server.gpus} ({server.key})" for server in plan.servers if not server.shares_gpus_with
    ]
    yield opened("GPUs", whole(plan.num_gpus), " + ".join(terms), rest.source, "none, counted exactly")
    if plan.usd_per_hour is not None:
        prices = " + ".join(
            f"{usd(server.usd_per_hour)} ({server.key})" for server in plan.servers if not server.shares_gpus_with
        )
        yield opened("price of an hour", usd(plan.usd_per_hour), prices, _prices(rest), "prices change: see the date")
    simulated = {server.key: server for server in rest.result.servers}
    for server in plan.servers:
        yield Details(server.key, _where(server), tuple(_server(rest, server, simulated.get(server.key))))


def _where(server: ServerPlan) -> str:
    return f"{server.model} on {server.replicas} × {server.gpus} as {server.layout}"


def _server(rest: ScenarioOrigins, server: ServerPlan, simulated: ServerResult | None) -> Iterator[Block]:
    basis = "; ".join(server.basis)
    own = f"weights in {server.quantization}, activations and what {server.engine} takes, of the fullest GPU"
    exact = f"that of the calibrated terms: see `l4spec plan` of {server.model}"
    yield opened("its own", gib(server.own_bytes), own, basis, exact)
    if server.cache_bytes is not None and server.capacity_bytes is not None:
        beside = f" - {gib(server.beside_bytes)} of the other models on it" if server.beside_bytes else ""
        left = f"{gib(server.capacity_bytes)} that the engine may use - {gib(server.own_bytes)} of its own{beside}"
        yield opened("cache", gib(server.cache_bytes), left, basis, exact)
    if server.sequences is not None and simulated is not None:
        blocks = (
            f"{whole(simulated.blocks_per_rank)} blocks × {simulated.num_ranks} ranks × {server.replicas} replicas / "
            f"blocks that {whole(rest.plan.prompt_tokens)} + {whole(rest.plan.output_tokens)} tokens take"
        )
        yield opened("sequences", whole(server.sequences), blocks, basis, rest.given)
    if simulated is not None:
        busy = f"time with a step under way / {seconds(rest.result.duration)}, mean of the replicas"
        yield opened("busy", f"{100 * simulated.utilization:.0f} %", busy, _STEPS, rest.time_error)
        hits = "prompt tokens that were cached / prompt tokens looked up"
        yield opened("prefix hits", f"{100 * simulated.prefix_hit_rate:.1f} %", hits, _STEPS, rest.given)


def _alone(rest: ScenarioOrigins) -> Iterator[Block]:
    plan, show = rest.plan, rest.figures.seconds
    mean = "the mean of the workload's distribution, with shared prefix and images"
    tokens = f"{rest.figures.mark}{whole(plan.prompt_tokens)} in, {whole(plan.output_tokens)} out"
    yield opened("mean request", tokens, mean, rest.source, rest.given)
    for stage in plan.stages:
        if stage.model is None:
            yield opened(stage.name, show(stage.seconds), "a given time", rest.source, rest.given)
        else:
            reads = f"{_ALONE}: {whole(stage.prompt_tokens)} tokens in, {whole(stage.output_tokens)} out"
            yield opened(stage.name, show(stage.seconds), reads, f"step times of {stage.model}", rest.time_error)
    first, last = _path(plan)
    yield opened("TTFT", show(plan.ttft_seconds), first, _STEPS, rest.time_error)
    yield opened("E2E", show(plan.e2e_seconds), last, _STEPS, rest.time_error)
    refusals = " × ".join(f"(1 - {stage.refusal_rate:g})" for stage in plan.stages if stage.refusal_rate)
    shown = f"{refusals}, checks of a stream left out: they refuse too late" if refusals else "no stage refuses"
    yield opened("answered", f"{rest.figures.mark}{100 * plan.answered:.1f} %", shown, rest.source, rest.given)


def _path(plan: ScenarioPlan) -> tuple[str, str]:
    """The sums to the first and to the last token that a user sees."""
    passed: list[str] = []
    first: str | None = None
    for stage in plan.stages:
        whole_stage = f"{seconds(stage.seconds)} {stage.name}"
        if stage.answers:
            first = " + ".join([*passed, f"{seconds(stage.first_token_seconds)} first token of {stage.name}"])
            passed.append(whole_stage)
        elif first is None:
            passed.append(whole_stage)
        elif stage.check == "blocking":
            passed.append(whole_stage)
            first = " + ".join(passed)
    last = " + ".join(passed)
    return first or last, last


__all__ = ["ScenarioOrigins", "scenario_sums"]
