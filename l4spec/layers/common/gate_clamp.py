"""Schema of the clamps that some gated feed-forward layers put on gate and product."""

from typing import Annotated

from pydantic import Field

from l4spec.layers.base import PositiveFloat, Spec


class GateClamp(Spec):
    """Gated product of clamped halves: g sigmoid(alpha g) (u + up_offset), g <= limit, |u| <= limit (gpt-oss)."""

    limit: PositiveFloat
    """Largest gate, and largest magnitude of the half that it multiplies; both are clamped before the activation."""
    alpha: PositiveFloat = 1.0
    """Slope of the sigmoid: 1 is SiLU, 1.702 nearly GELU (gpt-oss)."""
    up_offset: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    """Added to the clamped projection that the gate multiplies (gpt-oss: 1)."""
