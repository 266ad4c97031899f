"""Fitted factors of estimates: shares of the peaks that an engine reaches, and constant times.

One YAML file per engine in `planners/catalog/efficiency`, written by `python -m planners.evidence` from published
measurements that are marked for calibration. No number here is a guess, and none was fitted on a row marked `test`.
"""

from typing import Annotated

from pydantic import Field

from l4spec.catalog.entry import Entry, Source
from l4spec.errors import UserError
from l4spec.layers.base import AsTuple
from l4spec.units import Seconds
from planners.catalog.loader import find_shipped, load
from planners.latency_types import JudgedRow, LatencyError

Share = Annotated[float, Field(gt=0, le=1.5)]
"""A share of a peak. Slightly above 1 is possible where the bound counts traffic that caches absorb."""


MATMUL_REACH = {"bf16": 0.803 / 0.709}
"""Largest measured share of the peak in a number format over that of fp8: H100, rows KER-0011 and KER-0013."""


class ServingEfficiency(Entry):
    """Factors from the bound of a serving step to its estimate.

    Layers of one kind take hypot(weights / (bandwidth * memory), FLOPs / (peak * compute)), since matmuls read their
    weights while they multiply, + activations / (bandwidth * memory) + cache / (bandwidth * cache) + attention FLOPs /
    (peak * attention) + bytes sent / (link * links), and constants: per block (`layer`, or `moe_layer` where its
    feed-forward is routed), per block when more than `wide_from` sequences decode (`wide_layer`), per collective.
    `compute` is of fp8's peak; other formats reach `MATMUL_REACH` times the share. A server is never faster than
    `host_step + host_sequence * sequences`; a request waits `request` for its prefill, and `moe_request` besides where
    the model is routed.
    """

    engines: Annotated[tuple[str, ...], AsTuple]
    """Catalogue engines whose time this file estimates."""
    source: Source
    hardware: Annotated[tuple[str, ...], AsTuple]
    """Hardware that the rows were measured on; on any other the estimate is an extrapolation."""
    models: Annotated[tuple[str, ...], AsTuple]
    routed: bool | None = None
    """True if the fitted rows include a model with routed experts; None: not stated."""
    longest: int | None = None
    """Tokens of the longest sequence among the rows, prompt and output; None: not stated."""
    memory: Share
    cache: Share
    compute: Share
    attention: Share
    links: Share
    layer: Seconds
    moe_layer: Seconds
    wide_layer: Seconds
    wide_from: int
    collective: Seconds
    host_step: Seconds
    host_sequence: Seconds
    request: Seconds
    moe_request: Seconds = 0.0
    standard_errors: dict[str, float] = Field(default_factory=dict)
    """Standard error of each factor in log units (0.1: 10 %), without effects that the law leaves out."""
    undetermined: Annotated[tuple[str, ...], AsTuple] = ()
    """Factors that the rows do not determine, which have their expected values (`planners.evidence.terms`)."""
    notes: Annotated[tuple[str, ...], AsTuple] = ()
    errors: Annotated[tuple[LatencyError, ...], AsTuple] = ()
    judged: Annotated[tuple[JudgedRow, ...], AsTuple] = ()
    """Every row, judged by factors that were fitted without its series."""

    def error(self, metric: str) -> LatencyError | None:
        """The leave-one-source-out error of a metric, where it was measured."""
        return next((error for error in self.errors if error.metric == metric), None)


class TrainingEfficiency(Entry):
    """Factors from the bound of a training step to its estimate, for one family of hardware and every trainer.

    `matmul` is the share of the dense peak that matmuls reach by number format, `operands` the share of their own
    traffic's time that comes on top; `moved` and `moe_moved` multiply the declared element-wise traffic of dense and of
    routed layers; `tp`, `ep`, `cp`, `dp` are the shares of communication time that computation does not hide;
    `optimizer` multiplies the time of its traffic. `trainers` are the factors of trainers other than Megatron,
    `attention_of` their shares of the peak in attention, where they have one of their own.
    """

    source: Source
    hardware: Annotated[tuple[str, ...], AsTuple]
    matmul: dict[str, Share]
    operands: float
    attention: Share
    attention_of: dict[str, Share] = Field(default_factory=dict)
    moved: float
    moe_moved: float
    tp: float
    ep: float
    cp: float
    dp: float
    optimizer: float
    trainers: dict[str, float]
    most_devices: dict[str, int] = Field(default_factory=dict)
    """Devices of the largest fitted run by number format; beyond it an estimate is an extrapolation."""
    standard_errors: dict[str, float] = Field(default_factory=dict)
    """Standard error of each factor in log units (0.1: 10 %), without effects that the law leaves out."""
    undetermined: Annotated[tuple[str, ...], AsTuple] = ()
    """Factors that the rows do not determine, which have their expected values (`planners.evidence.terms`)."""
    notes: Annotated[tuple[str, ...], AsTuple] = ()
    errors: Annotated[tuple[LatencyError, ...], AsTuple] = ()
    judged: Annotated[tuple[JudgedRow, ...], AsTuple] = ()
    """Every row, judged by factors that were fitted without its series."""

    def error(self, metric: str) -> LatencyError | None:
        """The leave-one-source-out error of a metric, where it was measured."""
        return next((error for error in self.errors if error.metric == metric), None)


def extrapolations(factors: ServingEfficiency, hardware: str, *, routed: bool, tokens: float = 0) -> tuple[str, ...]:
    """Properties of a deployment outside the rows that `factors` were fitted on, whose errors then do not apply.

    `tokens` of a sequence; 0 where there are many of many lengths.
    """
    name, reasons = factors.name, []
    if hardware not in factors.hardware:
        rows = ", ".join(factors.hardware)
        reasons.append(f"{name}'s factors were fitted on {rows}: an extrapolation to {hardware}")
    if routed and factors.routed is False:
        reasons.append(f"{name}'s factors were fitted on dense models: an extrapolation to routed experts")
    if factors.longest is not None and tokens > factors.longest:
        reasons.append(
            f"{name}'s factors were fitted on at most {factors.longest:,} tokens: an extrapolation to {tokens:,.0f}"
        )
    return tuple(reasons)


def serving_efficiency(engine: str, file: str | None = None) -> ServingEfficiency | None:
    """The fitted factors of a catalogue engine, or of a `file` of one's own.

    None without published measurements of the engine. Raises UserError for a file that holds no factors.
    """
    if file is not None:
        return load("efficiency", ServingEfficiency, file)
    if find_shipped("efficiency", engine) is None:
        return None
    return load("efficiency", ServingEfficiency, engine)


def training_efficiency(hardware: str) -> TrainingEfficiency | None:
    """The fitted factors of the hardware's family; None if nothing was fitted on it."""
    name = f"train-{hardware}"
    try:
        return load("efficiency", TrainingEfficiency, name)
    except UserError:
        return None
