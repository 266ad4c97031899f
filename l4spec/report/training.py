"""Results of training runs: a row per phase or variant, with means over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from l4spec.report.length_page import length_section
from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.quantities import seconds
from planners.timing.drafts import mean_accepted

if TYPE_CHECKING:
    from l4spec.training.recipe.metrics import PhaseResult, RoutingSummary


@dataclass(frozen=True, slots=True)
class RecipeRuns:
    """Results of a recipe: by variant (None: the recipe itself) and seed, a row for each phase."""

    name: str
    runs: Mapping[tuple[str | None, int], Sequence["PhaseResult"]]
    descriptions: Mapping[str, str | None]


def training_page(runs: RecipeRuns) -> Page:
    """The page of a recipe's runs: phases of each, then variants side by side where there are several."""
    variants = list(dict.fromkeys(variant for variant, _ in runs.runs))
    lengths = length_section(runs.name, runs.runs)
    more = (*([] if lengths is None else [lengths]), *_depths(runs))
    if len(variants) == 1:
        return (Section(f"{runs.name}: phases", (_phases(runs, variants[0]), *_seeds(runs))), *more)
    return (Section(f"{runs.name}: variants", (_variants(runs, variants), *_seeds(runs), *_described(runs))), *more)


def _seeds(runs: RecipeRuns) -> tuple[Lines, ...]:
    seeds = list(dict.fromkeys(seed for _, seed in runs.runs))
    lines = f"seed {seeds[0]}" if len(seeds) == 1 else f"means of seeds {', '.join(map(str, seeds))}, +- deviations"
    return (Lines((lines,)),)


def _described(runs: RecipeRuns) -> tuple[Lines, ...]:
    lines = tuple(f"{name}: {text}" for name, text in runs.descriptions.items() if text)
    return (Lines(lines),) if lines else ()


def _phases(runs: RecipeRuns, variant: str | None) -> Table:
    by_phase = list(zip(*(results for (name, _), results in runs.runs.items() if name == variant), strict=True))
    headers = (
        "",
        "kind",
        "steps",
        "tokens",
        "loss",
        "held out",
        "bits/byte",
        "right",
        "experts in use",
        "metrics",
        "time",
    )
    rows = tuple(
        (
            results[0].name,
            results[0].kind,
            f"{results[0].steps:,}",
            f"{results[0].tokens:,}",
            spread([one.loss for one in results]),
            spread([one.held_out_loss for one in results]),
            spread([one.bits_per_byte for one in results]),
            _right(results),
            _in_use([one.routing for one in results]),
            _metrics(results),
            seconds(sum(one.seconds for one in results) / len(results)),
        )
        for results in by_phase
    )
    return Table(headers, rows, "llrrrrrrrlr")


def _variants(runs: RecipeRuns, variants: Sequence[str | None]) -> Table:
    headers = (
        "",
        "loss",
        "held out",
        "bits/byte",
        "experts in use",
        "max/mean",
        "tokens choosing",
        "max/mean",
        "time",
    )
    rows = []
    for variant in variants:
        last = [results[-1] for (name, _), results in runs.runs.items() if name == variant]
        rows.append(
            (
                variant or runs.name,
                spread([one.loss for one in last]),
                spread([one.held_out_loss for one in last]),
                spread([one.bits_per_byte for one in last]),
                _in_use([one.routing for one in last]),
                _max_over_mean([one.routing for one in last]),
                _in_use([one.evaluated for one in last]),
                _max_over_mean([one.evaluated for one in last]),
                seconds(sum(one.seconds for one in last) / len(last)),
            )
        )
    return Table(headers, tuple(rows))


def _depths(runs: RecipeRuns) -> tuple[Section, ...]:
    """Held-out scores of modules of multi-token prediction, and what drafting with them would bring a step."""
    by_phase: dict[tuple[str | None, str], list[PhaseResult]] = {}
    for (variant, _), results in runs.runs.items():
        for one in results:
            if one.depths:
                by_phase.setdefault((variant, one.name), []).append(one)
    rows = []
    for (variant, phase), same in by_phase.items():
        for depth in range(len(same[0].depths)):
            scores = [one.depths[depth] for one in same]
            tokens = [1 + mean_accepted(tuple(each.acceptance for each in one.depths[: depth + 1])) for one in same]
            cells = ([one.loss for one in scores], [one.bits_per_byte for one in scores])
            shares = ([one.acceptance for one in scores], tokens)
            rows.append((variant or runs.name, phase, f"{depth + 1}", *map(spread, (*cells, *shares))))
    if not rows:
        return ()
    headers = ("", "phase", "module", "held out", "bits/byte", "accepted", "tokens a step")
    return (Section(f"{runs.name}: modules of multi-token prediction", (Table(headers, tuple(rows), "llr"),)),)


def spread(values: Sequence[float]) -> str:
    """The mean, and with several values their deviation."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} +- {math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)):.3f}"


def _in_use(results: Sequence["RoutingSummary | None"]) -> str:
    known = [one for one in results if one is not None]
    if not known:
        return "-"
    mean = sum(one.effective_experts for one in known) / len(known)
    return f"{mean:.2f} of {known[0].num_experts}"


def _max_over_mean(results: Sequence["RoutingSummary | None"]) -> str:
    known = [one.max_over_mean for one in results if one is not None]
    return f"{sum(known) / len(known):.2f}" if known else "-"


def _right(results: Sequence["PhaseResult"]) -> str:
    known = [one.right for one in results if one.right is not None]
    return f"{sum(known) / len(known):.0%}" if known else "-"


def _metrics(results: Sequence["PhaseResult"]) -> str:
    names = dict.fromkeys(name for one in results for name in one.notes)
    means = {name: sum(one.notes[name] for one in results) / len(results) for name in names}
    return ", ".join(f"{name} {value:.3f}" for name, value in means.items()) or "-"
