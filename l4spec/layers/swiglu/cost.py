"""Cost of a SwiGLU layer."""

from l4spec.layers.base import Width
from l4spec.layers.common.gated import declare_gated
from l4spec.layers.declaration import Declaration
from l4spec.layers.swiglu.spec import SwiGLUSpec


def declare(spec: SwiGLUSpec, width: Width) -> Declaration:
    """gate_proj, up_proj [ffn, hidden], down_proj [hidden, ffn]: 6 * hidden * ffn FLOPs per token."""
    return declare_gated(spec.intermediate_size, spec.bias, "silu", width, clamped=spec.clamp is not None)
