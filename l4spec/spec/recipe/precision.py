"""Precision of a phase: which matmuls run in fp8, and how operands are scaled; shared by plan and run."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from l4spec.layers.base import Spec

Scaling = Literal["tensorwise", "rowwise", "blockwise", "unit"]
Float8Name = Literal["e4m3", "e5m2"]


class Bf16Spec(Spec):
    """No matmul in fp8: the plan takes bf16, a run computes in `train --dtype`."""

    kind: Literal["bf16"] = "bf16"


class Fp8Spec(Spec):
    """Matmuls with operands in fp8: activations and weights in e4m3, gradients in e4m3 or e5m2 (arXiv:2209.05433)."""

    kind: Literal["fp8"] = "fp8"
    scaling: Scaling = "tensorwise"
    """Values that share one scale: `tensorwise`, a whole operand; `rowwise`, a line of it along the contracted dim,
    with scales that are powers of two; `blockwise`, 128 values along the contracted dim, or 128 x 128 of the weights
    (arXiv:2412.19437). `unit`: no scales, for weights and outputs of unit variance (arXiv:2502.05967).
    """
    gradients: Float8Name | None = None
    """Format of gradients; null: e4m3 with `rowwise` and `blockwise`, whose scales follow local ranges, else e5m2."""
    matmuls: Annotated[str, Field(min_length=1, max_length=200)] = "fp8"
    """Scheme of `l4spec ls quantization`, or a file, whose rules select the weights with matmuls in fp8."""

    @property
    def gradient_format(self) -> Float8Name:
        """Format of gradients."""
        if self.gradients is not None:
            return self.gradients
        return "e4m3" if self.scaling in ("rowwise", "blockwise") else "e5m2"


def _spelled_out(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


_Either = Bf16Spec | Fp8Spec
Precision = Annotated[
    _Either,
    Field(discriminator="kind"),
    BeforeValidator(_spelled_out, json_schema_input_type=Literal["bf16", "fp8"] | _Either),
]
"""A name alone selects its defaults."""


def written(precision: Bf16Spec | Fp8Spec) -> str:
    """One line for reports: `bf16`, `fp8 tensorwise`, `fp8 rowwise (fp8-experts)`."""
    if precision.kind == "bf16":
        return "bf16"
    return f"fp8 {precision.scaling}" + ("" if precision.matmuls == "fp8" else f" ({precision.matmuls})")
