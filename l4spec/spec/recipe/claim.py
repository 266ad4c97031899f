"""Published claims about a training run, which `l4spec verify RECIPE` compares with the plan."""

from typing import Annotated, Literal

from pydantic import Field

from l4spec.layers.base import Spec

Measure = Literal["gpu_hours", "days", "tflops_per_gpu", "tokens", "usd", "gpus"]


class RecipeClaim(Spec):
    """One published number."""

    what: Measure
    """gpu_hours and days of all phases, or of `phase`; tflops_per_gpu by 6 FLOPs per token and active parameter."""
    value: Annotated[float, Field(gt=0, le=1e30)]
    """The number, in base units: hours, days, TFLOP/s, tokens, $."""
    phase: str | None = None
    """Phase that it is about; without one, all of them."""
    within: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Relative difference up to which the claim holds."""
    source: str
    """Publication of the figure."""
