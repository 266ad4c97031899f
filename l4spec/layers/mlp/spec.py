"""Schema of the plain two-layer feed-forward network."""

from typing import Literal

from l4spec.layers.base import InnerWidthSpec, LayerSize


class MLPSpec(InnerWidthSpec):
    """Feed-forward layer GELU(x W_up) W_down, as in GPT-2 and vision transformers."""

    kind: Literal["mlp"]
    intermediate_size: LayerSize
    """Width between the two projections."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2"] = "gelu"
    """Exact GELU, its tanh approximation, ReLU, or its square (Nemotron-H)."""
    bias: bool = True
    """Biases on both projections."""
