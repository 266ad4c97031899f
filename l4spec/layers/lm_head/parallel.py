"""The language-model head with its weight cut along the vocabulary."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, empty
from l4spec.layers.common.parallel import Cuts, Ranks, enter, gather_last
from l4spec.layers.lm_head.module import LMHead
from l4spec.layers.lm_head.spec import LMHeadSpec


class VocabHead(LMHead):
    """Holds the rows of the weight for a run of the logits.

    `gathers`: the others' logits are needed too; a loss needs only its own.
    """

    joins_itself = True

    def __init__(self, spec: LMHeadSpec, width: Width, ranks: Ranks, cuts: Cuts) -> None:
        super().__init__(spec, width)
        self.sizes = [len(rows) for rows in cuts["vocab"]]
        self.own_ids = cuts["vocab"][ranks.tp.index]
        own = len(self.own_ids)
        if not spec.tied:
            self.weight = empty(own, width.hidden_size)
        self.bias = empty(own) if spec.bias else None
        self.ranks = ranks
        self.gathers = True

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to fp32 logits [batch, tokens, vocab], or those of this rank's rows."""
        entered = x if context.split is not None else enter(x, self.ranks.tp)
        own = super().forward(entered, context=context)
        return gather_last(own, self.ranks.tp, self.sizes) if self.gathers else own
