"""The report of `l4spec search`: the best deployment, a ranked table, the Pareto front, and limits of the others."""

from collections.abc import Iterator, Sequence

from l4spec.report.front import draw_front, front_figure
from l4spec.report.latency import error_words
from l4spec.report.page import Code, Facts, Lines, Page, Section, Table
from l4spec.report.quantities import amount, seconds, usd, whole
from planners.search.search_types import RankedDeployment, SearchAnswer

_FRONT = "Tokens/s of a GPU over tokens/s of a user"
REASONS = {
    "memory": "memory",
    "max_context": "longest sequence",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "rate": "requests per second",
    "budget": "budget",
    "deadline": "deadline",
    "no_layout": "no legal layout",
    "no_engine": "engine",
    "no_time": "time unknown",
}


def search_page(answer: SearchAnswer, spec: str, *, top: int, explain: bool) -> Page:
    """The best deployment and its command, the `top` best, the front, and with `explain` the limits of the others."""
    sections = [Section("", (Lines((verdict(answer),)),))]
    if answer.ranked:
        sections += _ranked_sections(answer, spec, top)
    else:
        rows = tuple((each.option, each.why) for each in answer.loosen)
        title = "Loosen all of these together" if len(rows) == 1 and len(answer.loosen[0].limits) > 1 else ""
        sections.append(Section(title or "Any of these alone would do", (Table(("limit", "for"), rows, "ll"),)))
    if len(answer.front) > 1:
        sections.append(Section(_FRONT, (Code(draw_front(answer.front)),)))
    if explain:
        sections.append(Section("What binds the others", (_losers(answer),)))
    sections.append(Section("", (Lines(tuple(_notes(answer, top))),)))
    return tuple(sections)


def search_report(answer: SearchAnswer, spec: str, *, top: int, explain: bool) -> Page:
    """The page with its front drawn, for documents that can hold pictures."""
    return tuple(
        section._replace(blocks=(front_figure(answer.front),)) if section.title == _FRONT else section
        for section in search_page(answer, spec, top=top, explain=explain)
    )


def verdict(answer: SearchAnswer) -> str:
    """One sentence: the best deployment, or that there is none."""
    if not answer.ranked:
        return f"No deployment of {answer.model} meets the limits."
    best = answer.ranked[0]
    return (
        f"{answer.model}: {_where(best)} {best.layout}, {best.quantization} weights, KV cache in {best.kv_dtype}, "
        f"{best.engine}: {_bill(answer, best)}"
    )


def _bill(answer: SearchAnswer, best: RankedDeployment) -> str:
    """Cost of the GPUs per hour, and of a request with all of its tokens."""
    inputs, outputs = best.usd_per_million_input_tokens, best.usd_per_million_output_tokens
    if best.usd_per_hour is None or inputs is None or outputs is None:
        return "at an unknown price"
    tokens = (answer.request["prompt_tokens"], answer.request["output_tokens"])
    request = (inputs * tokens[0] + outputs * tokens[1]) / 1e6
    return (
        f"${best.usd_per_hour:,.2f} an hour, ${request:.3g} a request ({_usd(inputs)} a million tokens in, "
        f"{_usd(outputs)} out)"
    )


def _ranked_sections(answer: SearchAnswer, spec: str, top: int) -> Iterator[Section]:
    best = answer.ranked[0]
    rows = tuple(
        (
            f"{each.rank}{'=' if each.within_error and each is not best else ''}",
            f"{_where(each)}{' ~' if each.extrapolated else ''}",
            str(each.layout).removesuffix(" dp1"),
            each.quantization,
            each.kv_dtype,
            each.engine.removesuffix("-hybrid"),
            seconds(each.ttft_seconds),
            seconds(each.time_per_output_token_seconds),
            amount(each.tokens_per_second_per_gpu),
            _usd(each.usd_per_million_input_tokens),
            _usd(each.usd_per_million_output_tokens),
        )
        for each in answer.ranked[:top]
    )
    headers = ("", "GPUs", "layout", "weights", "KV", "engine", "TTFT", "TPOT", "tok/s/GPU", "$/M in", "$/M out")
    yield Section("", (Table(headers, rows, "rlllllrrrrr"),))
    simulated = [each for each in answer.ranked[:top] if each.simulated is not None or each.not_simulated]
    if len(simulated) > 1:
        yield Section(
            "Simulated, each replica under its share of the load", (_simulations(simulated), *_agreed(simulated))
        )
    facts = [
        ("check", f"l4spec plan {spec} {best.plan}"),
        ("replicas", f"{best.replicas} of {best.gpus_per_replica} GPUs, each with {_load(best)}"),
        ("price", best.price_source or "unknown: give --usd-per-gpu-hour"),
        *((f"error of {error.metric.upper()}", error_words(error)) for error in answer.errors),
    ]
    if len(simulated) == 1:
        facts.append(("simulated", _in_a_sentence(best)))
    facts += [("caution", caution) for caution in answer.cautions]
    yield Section("", (Facts(tuple(facts)),))


def _in_a_sentence(best: RankedDeployment) -> str:
    """Simulated latency of the best deployment, and the service levels that it breaks, in one sentence."""
    service = best.simulated
    if service is None:
        return f"no answer: {best.not_simulated}"
    tpot = "" if service.tpot_mean_seconds is None else f", TPOT {seconds(service.tpot_mean_seconds)}"
    broken = " and ".join(REASONS[limit] for limit in service.breaks)
    state = f"breaks {broken}: see --simulate" if broken else f"{service.attainment:.0%} of requests meet every limit"
    return f"TTFT {seconds(service.ttft_mean_seconds)} (p99 {seconds(service.ttft_p99_seconds)}){tpot}; {state}"


def _simulations(rows: Sequence[RankedDeployment]) -> Table:
    cells = []
    for each in rows:
        service = each.simulated
        if service is None:
            cells.append((str(each.rank), _where(each), *("-",) * 7, each.not_simulated))
            continue
        tpot = ("-", "-")
        if service.tpot_mean_seconds is not None and service.tpot_p99_seconds is not None:
            tpot = (seconds(service.tpot_mean_seconds), seconds(service.tpot_p99_seconds))
        cells.append(
            (
                str(each.rank),
                _where(each),
                seconds(each.ttft_seconds),
                seconds(service.ttft_mean_seconds),
                seconds(service.ttft_p99_seconds),
                seconds(each.time_per_output_token_seconds),
                *tpot,
                f"{service.attainment:.0%}",
                ", ".join(REASONS[limit] for limit in service.breaks) or "no",
            )
        )
    headers = ("", "GPUs", "TTFT", "simulated", "p99", "TPOT", "simulated", "p99", "in time", "breaks")
    return Table(headers, tuple(cells), "rlrrrrrrrl")


def _agreed(rows: Sequence[RankedDeployment]) -> tuple[Lines, ...]:
    """Agreement of the closed form, which ranked the deployments, with their simulation."""
    broken = [each for each in rows if each.simulated is None or each.simulated.breaks]
    what = f"{len(rows) - len(broken)} of {len(rows)} meet the limits in the simulation too, by their means."
    why = "Simulated clients begin at once, and answers of one length keep them together; the closed form spreads them."
    return (Lines((what, why) if broken and rows[0].concurrency_per_replica else (what,)),)


def _load(best: RankedDeployment) -> str:
    if best.rate_per_replica is not None:
        return f"{best.rate_per_replica:.3g} requests per second"
    return f"{whole(best.concurrency_per_replica or 1)} clients"


def _notes(answer: SearchAnswer, top: int) -> Iterator[str]:
    space = answer.space
    yield (
        f"{whole(space.candidates)} candidates: {whole(space.timed)} timed, {whole(space.pruned)} ruled out by proof; "
        f"{whole(answer.num_meeting)} meet the limits."
    )
    if any(each.within_error for each in answer.ranked[1:top]):
        yield "= costs the same as the best within the estimate's median error."
    if any(each.extrapolated for each in answer.ranked[:top]):
        yield "~ no published measurements of this engine on this hardware: an extrapolation."


def _losers(answer: SearchAnswer) -> Table:
    """Losers with the same bound in one row: the reasons of hundreds of kinds on a page."""
    rows = tuple(
        (
            f"{each.gpus_per_replica}x{each.hardware}",
            each.quantization,
            each.kv_dtype,
            each.engine.removesuffix("-hybrid"),
            REASONS[each.bound_by],
            each.why,
        )
        for each in answer.losers
    )
    return Table(("replica", "weights", "KV", "engine", "bound by", "nearest"), rows, "llllll")


def _where(each: RankedDeployment) -> str:
    gpus = f"{each.gpus_per_replica}x{each.hardware}"
    return gpus if each.replicas == 1 else f"{each.replicas} x {gpus}"


def _usd(value: float | None) -> str:
    return "unknown" if value is None else usd(value)


_DEGREES, _OF_SIMULATION = ("tp", "ep", "pp"), ("simulated", "not_simulated")
CSV_COLUMNS = (*(name for name in RankedDeployment.model_fields if name not in ("layout", *_OF_SIMULATION)), *_DEGREES)


def csv_rows(answer: SearchAnswer) -> Iterator[dict[str, object]]:
    """Every ranked deployment as a flat mapping, the layout's degrees as columns of their own."""
    for each in answer.ranked:
        yield {name: getattr(each.layout if name in _DEGREES else each, name) for name in CSV_COLUMNS}
