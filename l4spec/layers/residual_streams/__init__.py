"""The room of residual streams: hyper-connections instead of residual addition."""

from l4spec.layers.base import LayerKind
from l4spec.layers.residual_streams.cost import declare
from l4spec.layers.residual_streams.spec import ResidualStreamsSpec

KIND = LayerKind(
    spec=ResidualStreamsSpec,
    declare=declare,
    module="l4spec.layers.residual_streams.module:ResidualStreams",
    slot="wiring",
    is_peak_predicted=False,
)
