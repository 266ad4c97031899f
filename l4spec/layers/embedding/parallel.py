"""The token embedding with its table cut along the vocabulary."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, empty
from l4spec.layers.common.parallel import Cuts, Ranks, leave
from l4spec.layers.embedding.module import Embedding
from l4spec.layers.embedding.spec import EmbeddingSpec


class VocabEmbedding(Embedding):
    """Holds a run of the table's rows; a token's row comes from the rank that has it."""

    joins_itself = True

    def __init__(self, spec: EmbeddingSpec, width: Width, ranks: Ranks, cuts: Cuts) -> None:
        super().__init__(spec, width)
        own_ids = cuts["vocab"][ranks.tp.index]
        self.weight = empty(len(own_ids), width.hidden_size)
        self.ranks, self.own_ids = ranks, own_ids

    def forward(self, input_ids: Tensor, *, context: Context) -> Tensor:
        """Token ids [batch, tokens] to [batch, tokens, hidden]."""
        is_here = (input_ids >= self.own_ids.start) & (input_ids < self.own_ids.stop)
        rows = self._rows_of(input_ids, is_here, context)
        return rows if context.split is not None else leave(rows, self.ranks.tp)

    def _rows_of(self, input_ids: Tensor, is_here: Tensor, context: Context) -> Tensor:
        """Rows of the tokens that this rank has, zeros elsewhere."""
        if not self.own_ids:
            return self.weight.new_zeros(*input_ids.shape, self.weight.shape[1]) + self.weight.sum()
        local = (input_ids - self.own_ids.start).clamp(0, len(self.own_ids) - 1)
        return super().forward(local, context=context) * is_here[..., None]
