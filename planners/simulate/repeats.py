"""A scenario over several seeds, side by side: means with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import sqrt
from statistics import NormalDist, fmean, stdev

from l4spec.spec.scenario.references import LoadedScenario
from planners.simulate.result_types import Interval, SimulationResult
from planners.simulate.run import simulate

FIGURES: dict[str, Callable[[SimulationResult], float | None]] = {
    "ttft_p99": lambda result: result.ttft.p99 if result.ttft else None,
    "tpot_p99": lambda result: result.tpot.p99 if result.tpot else None,
    "e2e_mean": lambda result: result.e2e.mean if result.e2e else None,
    "goodput": lambda result: result.goodput,
    "output_tokens_per_second": lambda result: result.output_tokens_per_second,
}
"""Figures that get a confidence interval."""


def repeated(loaded: LoadedScenario, repeats: int, jobs: int = 1) -> SimulationResult:
    """The result of the scenario's own seed, with intervals over `repeats` seeds from it on.

    Seeds run side by side in `jobs` processes by joblib, so on whatever backend joblib is set to.
    """
    seeds = [loaded.scenario.seed + index for index in range(repeats)]
    results = side_by_side([_with_seed(loaded, seed) for seed in seeds], jobs)
    intervals = {}
    for name, figure in FIGURES.items():
        values = [value for value in map(figure, results) if value is not None]
        if len(values) > 1:
            intervals[name] = interval(values)
    return results[0].model_copy(update={"intervals": intervals})


def side_by_side(scenarios: Sequence[LoadedScenario], jobs: int) -> list[SimulationResult]:
    """The results of several scenarios, in their order."""
    if jobs == 1 or len(scenarios) == 1:
        return [simulate(loaded) for loaded in scenarios]
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=jobs)(delayed(simulate)(loaded) for loaded in scenarios))


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, and half the width of its 95 % confidence interval."""
    half = student(len(values) - 1) * stdev(values) / sqrt(len(values))
    return Interval(mean=fmean(values), half_width=half, repeats=len(values))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution: exact for 1 and 2 degrees of freedom, else within 0.3 %.

    Expansion of Hill (1970) about the normal quantile, to the fourth power of 1 / freedom.
    """
    if freedom <= 2:
        return {1: 12.7062, 2: 4.3027}[max(freedom, 1)]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms)))


def _with_seed(loaded: LoadedScenario, seed: int) -> LoadedScenario:
    return replace(loaded, scenario=loaded.scenario.model_copy(update={"seed": seed}))
