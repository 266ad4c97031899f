"""Two factors of a workload, on generation's and the learner's seconds, from steps that were measured synchronously."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log

from planners.recipes.rl.events import RlSimulation
from planners.recipes.rl.setup import RlSetup

ALIKE = 0.02
"""Weight of the factors' log ratio beside the rows' log errors, so that one row without parts determines both."""


@dataclass(frozen=True, slots=True)
class RlFactors:
    """Factors on the planned seconds."""

    generation: float = 1.0
    training: float = 1.0

    def applied(self, setup: RlSetup) -> RlSetup:
        """The setup with its seconds multiplied."""
        times, seconds = setup.decode.times(self.generation), setup.train_seconds * self.training
        return replace(setup, decode=times, train_seconds=seconds)


@dataclass(frozen=True, slots=True)
class SynchronousStep:
    """A colocated setup with measured seconds of its step, and of its parts where they are known."""

    setup: RlSetup
    step_seconds: float
    generation_seconds: float | None = None
    training_seconds: float | None = None


def fit_factors(steps: Sequence[SynchronousStep]) -> RlFactors:
    """Least squares of log errors: of both parts where a row has them, else of its whole step."""
    from scipy.optimize import least_squares

    parts = [(row, *_planned(row.setup)) for row in steps]

    def errors(logs: "Sequence[float]") -> list[float]:
        generation, training = exp(logs[0]), exp(logs[1])
        misses = [ALIKE * (logs[0] - logs[1])]
        for row, generating, learning in parts:
            if row.generation_seconds is not None and row.training_seconds is not None:
                misses.append(log(generation * generating / row.generation_seconds))
                misses.append(log(training * learning / row.training_seconds))
            else:
                whole = generation * generating + training * learning + row.setup.push_seconds
                misses.append(log(whole / row.step_seconds))
        return misses

    solved = least_squares(errors, (0.0, 0.0)).x
    return RlFactors(exp(float(solved[0])), exp(float(solved[1])))


def _planned(setup: RlSetup) -> tuple[float, float]:
    """Seconds that all answers take, and those of the learner. Generation scales with its factor exactly."""
    step = RlSimulation(setup).run(warm_up=1, measured=2).step_seconds
    return step - setup.train_seconds - setup.push_seconds, setup.train_seconds
