"""The torch module of the language-model head."""

from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.common.modules import (
    Context,
    LayerModule,
    Products,
    add_bias,
    empty,
    linear,
    soft_cap,
    wide,
)
from l4spec.layers.lm_head.spec import LMHeadSpec


class LMHead(LayerModule):
    """Logits x W^T (+ b) in fp32; tied, the weight is the embedding's and is not stored here."""

    products: Products | None = None
    """Products in training; None: the plain ones."""

    def __init__(self, spec: LMHeadSpec, width: Width) -> None:
        super().__init__()
        if not spec.tied:
            self.weight = empty(spec.vocab_size, width.hidden_size)
        self.bias = empty(spec.vocab_size) if spec.bias else None
        self.softcap = spec.logit_softcap
        self._owner: tuple[nn.Module, ...] = ()

    def tie(self, name: str, owner: nn.Module) -> None:
        """Take the weight from `owner`, which stays the one that holds it."""
        assert name == "weight"
        self._owner = (owner,)  # a tuple hides it from nn.Module, which would hold and store it twice

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to fp32 logits [batch, tokens, vocab] (fp64 in a model of fp64)."""
        weight = self._owner[0].weight if self._owner else self.weight
        assert isinstance(weight, Tensor)
        if self.products is not None and self.training:
            return soft_cap(wide(add_bias(self.products.linear(x, weight), self.bias)), self.softcap)
        return soft_cap(wide(linear(x, weight, self.bias)), self.softcap)
