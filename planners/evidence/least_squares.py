"""Fits factors to residuals: robust least squares with priors, by scipy, and the standard error of each factor.

scipy comes with the extra `fit`; planning needs none.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

from l4spec.errors import Problem, UserError
from planners.evidence.terms import Term

OPEN = 0.8
"""A factor whose standard error stays above this share of its prior's spread is not determined by the rows."""
_ORIGIN = 10.0
"""Coordinate of a factor's expected value: scipy's steps are shares of the coordinate, so 0 is far."""
_STEP = 1e-4
"""Step of difference quotients in log units."""
_REACH = 6.0
"""Largest distance of a factor from its expected value, in spreads; beyond it the rows or the law are wrong."""
_GAIN = 1e-4
"""A step that gains less than this share of the cost ends the fit: far less than moves any factor's third digit."""

Residuals = Callable[[Mapping[str, float]], Sequence[float]]
"""Function from factors to the residual of every row, in units of its noise."""


@dataclass(frozen=True, slots=True)
class FittedTerms:
    """Factors by name, their standard errors in log units (0.1: 10 %), and `cost`, half the sum of squares.

    A standard error is of the law as written, without effects that the law leaves out.
    """

    values: Mapping[str, float]
    standard_errors: Mapping[str, float]
    undetermined: tuple[str, ...]
    cost: float


def fit_terms(
    terms: Sequence[Term], residuals: Residuals, start: Mapping[str, float] | None = None, *, rounds: int = 60
) -> FittedTerms:
    """The factors with the least soft-L1 cost of the residuals and of the distances from the expected values.

    The loss 2 (sqrt(1 + r^2) - 1) is quadratic within a row's noise and linear beyond: one bad row does not decide.
    Priors are residuals like the rows'. Raises UserError without scipy.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise UserError([Problem("fitting needs scipy", hint="pip install 'l4spec[fit]'")]) from None

    def values(point: Sequence[float]) -> dict[str, float]:
        return {term.name: term.expected * exp(x - _ORIGIN) for term, x in zip(terms, point, strict=True)}

    def all_residuals(point: Sequence[float]) -> list[float]:
        pulls = [(x - _ORIGIN) / term.spread for term, x in zip(terms, point, strict=True)]
        return [*residuals(values(point)), *pulls]

    begin = start or {}
    reach = [_REACH * term.spread for term in terms]
    least = [_ORIGIN - far for far in reach]
    bounds = [_ORIGIN + min(far, log(term.most / term.expected)) for far, term in zip(reach, terms, strict=True)]
    first = [_ORIGIN + log(begin.get(term.name, term.expected) / term.expected) for term in terms]
    inside = [max(low + 1e-3, min(x, most - 1e-3)) for x, low, most in zip(first, least, bounds, strict=True)]
    shape = {"loss": "soft_l1", "diff_step": _STEP / _ORIGIN, "ftol": _GAIN}
    solution = least_squares(all_residuals, inside, bounds=(least, bounds), max_nfev=rounds, **shape)
    errors = _standard_errors(solution.jac)
    return FittedTerms(
        values=values(solution.x.tolist()),
        standard_errors={term.name: error for term, error in zip(terms, errors, strict=True)},
        undetermined=tuple(term.name for term, error in zip(terms, errors, strict=True) if error > OPEN * term.spread),
        cost=float(solution.cost),
    )


def shared_noise(alike: Sequence[object]) -> list[float]:
    """Factor on the noise of each row: errors of like rows are alike, so n of them weigh as one."""
    counts = Counter(alike)
    return [sqrt(counts[key]) for key in alike]


def _standard_errors(jacobian: object) -> list[float]:
    """Square roots of the diagonal of (J^T J)^-1: residuals are in units of noise, and J is that of the robust cost."""
    from scipy.linalg import svd

    _, singular, rows = svd(jacobian, full_matrices=False)
    count = rows.shape[1]
    return [
        sqrt(sum(float(rows[k][i] / singular[k]) ** 2 for k in range(count) if singular[k] > 0)) for i in range(count)
    ]
