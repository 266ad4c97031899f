"""Cost of a GeGLU layer."""

from l4spec.layers.base import Width
from l4spec.layers.common.gated import declare_gated
from l4spec.layers.declaration import Declaration
from l4spec.layers.geglu.spec import GeGLUSpec


def declare(spec: GeGLUSpec, width: Width) -> Declaration:
    """gate_proj, up_proj [ffn, hidden], down_proj [hidden, ffn]: 6 * hidden * ffn FLOPs per token."""
    activation = "gelu_tanh" if spec.approximate == "tanh" else "gelu"
    return declare_gated(spec.intermediate_size, spec.bias, activation, width)
