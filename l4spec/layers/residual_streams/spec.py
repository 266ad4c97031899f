"""Schema of residual streams, and of the wiring between them and layers."""

from typing import Annotated, Literal

from pydantic import Field

from l4spec.layers.base import LayerSpec, PositiveFloat, Spec

Step = Literal["copy", "weigh", "collapse", "spread", "join"]
"""`copy`: embeddings to all streams. `weigh`: streams to the weights of one layer. `collapse`: streams and weights to
the layer's input. `spread`: streams, the layer's output and weights to the next streams. `join`: streams to one."""


class Streams(Spec):
    """Several residual streams that each layer reads and writes by weights of its own (mHC, arXiv:2512.24880)."""

    count: Annotated[int, Field(ge=1, le=64)]
    """Streams, each as wide as hidden_size."""
    sinkhorn_iterations: Annotated[int, Field(ge=1, le=1000)] = 20
    """Rounds that make the weights among streams doubly stochastic."""
    eps: PositiveFloat = 1e-6
    """Added to weights and to the sums that they are divided by."""
    norm_eps: PositiveFloat = 1e-6
    """eps of the norm over all streams that weights are computed from."""

    @property
    def num_weights(self) -> int:
        """Weights per token: those that read each stream, write each, and mix them."""
        return (2 + self.count) * self.count


class ResidualStreamsSpec(LayerSpec):
    """Hyper-connections: the path from several residual streams into a layer, and back."""

    kind: Literal["residual_streams"]
    step: Step
    """Step of this node."""
    streams: Streams
    """The streams."""
