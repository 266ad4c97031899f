"""Predicted times of a run on this calibrated machine, with their usual error."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from planners.catalog import find_own, hardware
from planners.catalog.user_catalog import THIS_MACHINE
from planners.module.error import DECODE, PREFILL

if TYPE_CHECKING:
    from l4spec.runtime.measure.run import RunShape
    from planners.catalog.cpu_profile import EagerTimes

USUAL_ERROR = max(PREFILL.p90, DECODE.p90)
"""Nine in ten predictions were at most this wrong."""


@dataclass(frozen=True, slots=True)
class ExpectedTimes:
    """Seconds of a prefill and of a decode step in the middle of the run; None: not predicted. `note` is the reason."""

    prefill: float | None = None
    decode: float | None = None
    note: str = ""


UNKNOWN = ExpectedTimes()


def expected_times(graph: LayerGraph, sample: "RunShape", *, device: str, dtype: str, threads: int) -> ExpectedTimes:
    """By the profile that `l4spec calibrate` wrote. Raises UserError for a profile that cannot be read."""
    if device != "cpu" or sample.tiles:
        return UNKNOWN
    if find_own("hardware", THIS_MACHINE) is None:
        return ExpectedTimes(note="times are not predicted: `l4spec calibrate` measures this machine for that")
    times = hardware(THIS_MACHINE).eager
    problem = "its profile has no times of our module" if times is None else _unlike(times, dtype, threads)
    if times is None or problem:
        return ExpectedTimes(note=f"times are not predicted: {problem}; `l4spec calibrate` measures again")
    from planners.module.step_time import EagerModel

    model = EagerModel(graph, times, dtype)
    step = Work(sample.batch, 1, sample.prefill + max(0, sample.decode - 1) // 2, phase="decode", num_logits=1)
    return ExpectedTimes(
        model.seconds(Work(sample.batch, sample.prefill, num_logits=1)), model.seconds(step), _note(times)
    )


def _unlike(times: "EagerTimes", dtype: str, threads: int) -> str:
    if dtype not in times.pieces:
        return f"this machine was calibrated for {' and '.join(times.pieces)}, not {dtype}"
    if threads != times.threads:
        return f"this machine was calibrated with {times.threads} threads, and {threads} compute now"
    return ""


def _note(times: "EagerTimes") -> str:
    return (
        f"times are predicted by the calibration of {times.measured}; usual error: "
        f"prefill {100 * PREFILL.median:.0f} % (p90 {100 * PREFILL.p90:.0f} %), "
        f"decode {100 * DECODE.median:.0f} % (p90 {100 * DECODE.p90:.0f} %)"
    )
