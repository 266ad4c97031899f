"""The report of `l4spec search --mode train`: the cheapest cluster within the deadline, and limits of the others."""

from collections.abc import Iterator

from l4spec.report.latency import error_words
from l4spec.report.page import Facts, Lines, Page, Section, Table
from l4spec.report.quantities import short_amount, whole
from l4spec.report.search_page import REASONS
from planners.clusters.training_search_types import RankedTraining, TrainingSearchAnswer
from planners.plan_types import KeptState


def training_search_page(answer: TrainingSearchAnswer, spec: str, *, top: int, explain: bool) -> Page:
    """The best cluster and its command, the `top` cheapest, and with `explain` the limits of the others."""
    sections = [Section("", (Lines((training_verdict(answer),)),))]
    if answer.ranked:
        sections += _ranked_sections(answer, spec, top)
    else:
        rows = tuple((each.option, each.why) for each in answer.loosen)
        sections.append(Section("This would do", (Table(("limit", "for"), rows, "ll"),)))
    if explain:
        sections.append(Section("What binds the others", (_losers(answer),)))
    return (*sections, Section("", (Lines(tuple(_notes(answer, top))),)))


def training_verdict(answer: TrainingSearchAnswer) -> str:
    """One sentence: the cheapest cluster, or that there is none."""
    if not answer.ranked:
        return f"No cluster trains {answer.model} by the deadline."
    best = answer.ranked[0]
    return (
        f"{answer.model}: {whole(best.num_gpus)}x{best.hardware} {best.layout}, matmuls in {best.precision}: "
        f"{best.days:,.1f} days, {_bill(best)}"
    )


def _ranked_sections(answer: TrainingSearchAnswer, spec: str, top: int) -> Iterator[Section]:
    best = answer.ranked[0]
    rows = tuple(
        (
            f"{each.rank}{'=' if each.within_error and each is not best else ''}{'*' if each.on_front else ''}",
            f"{whole(each.num_gpus)}x{each.hardware}{' ~' if each.extrapolated else ''}",
            str(each.layout),
            each.precision,
            f"{each.training.zero_stage}, {each.training.activation_checkpointing}, {each.training.micro_batch}",
            f"{each.mfu:.1%}",
            f"{each.days:,.1f}",
            short_amount(each.gpu_hours),
            _bill(each),
        )
        for each in answer.ranked[:top]
    )
    headers = ("", "GPUs", "layout", "matmuls", "ZeRO, ckpt, micro-batch", "MFU", "days", "GPU-hours", "$")
    yield Section("", (Table(headers, rows, "rllllrrrr"),))
    facts = (
        ("check", f"l4spec plan {spec} {best.plan}"),
        ("price", best.price_source or "unknown: give --usd-per-gpu-hour"),
        *(("error", f"of a step: {error_words(error)}") for error in answer.errors),
    )
    yield Section("", (Facts(facts),))


def _notes(answer: TrainingSearchAnswer, top: int) -> Iterator[str]:
    space, listed = answer.space, answer.ranked[:top]
    yield (
        f"{whole(space.candidates)} candidates: {whole(space.timed)} timed, {whole(space.pruned)} ruled out by proof; "
        f"{whole(answer.num_meeting)} are done in time."
    )
    if any(each.within_error for each in listed[1:]):
        yield "= costs the same as the best within the estimate's median error."
    if listed:
        yield "* no other is both sooner done and cheaper."
    if any(each.extrapolated for each in listed):
        yield "~ more GPUs than any fitted run had: an extrapolation."
    if listed:
        yield "Left out: restarts, evaluation, reading data, and how long a cluster is waited for."


def _losers(answer: TrainingSearchAnswer) -> Table:
    rows = tuple(
        (f"{whole(each.num_gpus)}x{each.hardware}", each.precision, REASONS[each.bound_by], each.why)
        for each in answer.losers
    )
    return Table(("GPUs", "matmuls", "bound by", "nearest"), rows, "llll")


def _bill(each: RankedTraining) -> str:
    """Cost of the run, rounded to the precision of an estimate."""
    return "unknown" if each.usd is None else f"${short_amount(each.usd)}"


_DEGREES = ("tp", "ep", "pp", "dp")
CSV_COLUMNS = (
    *(name for name in RankedTraining.model_fields if name not in ("layout", "training")),
    *_DEGREES,
    *KeptState.model_fields,
)


def csv_rows(answer: TrainingSearchAnswer) -> Iterator[dict[str, object]]:
    """Every ranked cluster as a flat mapping, layout and training state as columns of their own."""
    for each in answer.ranked:
        parts = {name: getattr(each.layout, name) for name in _DEGREES} | each.training.model_dump()
        yield {name: parts[name] if name in parts else getattr(each, name) for name in CSV_COLUMNS}
