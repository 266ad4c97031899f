"""The kind `compressed_attention`: attention to a window and to compressed keys (DeepSeek-V4)."""

from l4spec.layers.base import LayerKind
from l4spec.layers.compressed_attention.cost import declare
from l4spec.layers.compressed_attention.spec import CompressedAttentionSpec

KIND = LayerKind(
    spec=CompressedAttentionSpec,
    declare=declare,
    module="l4spec.layers.compressed_attention.module:CompressedAttention",
    slot="attention",
    is_peak_predicted=False,
)
