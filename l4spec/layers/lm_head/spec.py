"""Schema of the language-model head."""

from typing import Literal

from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat


class LMHeadSpec(LayerSpec):
    """Projection of the last hidden state to one logit per vocabulary entry, in fp32."""

    kind: Literal["lm_head"]
    vocab_size: LayerSize
    """Number of logits."""
    tied: bool = False
    """Use the embedding table as weight."""
    bias: bool = False
    """A bias per logit."""
    logit_softcap: PositiveFloat | None = None
    """Logits become cap * tanh(logit / cap) (Gemma 2)."""
