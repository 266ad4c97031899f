"""Schema of sparse multi-head latent attention."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.attention.masks import CausalMask
from l4spec.layers.attention.positions import Rope
from l4spec.layers.base import LayerSize, Shrink, Size
from l4spec.layers.mla.spec import LatentSpec, MLASpec

_OF_THE_INDEX = {"kind", "index_num_heads", "index_head_dim", "index_topk", "index_layout"}


class SparseMLASpec(LatentSpec):
    """Latent attention to the few tokens that an index of small keys chooses (DeepSeek-V3.2, arXiv:2512.02556)."""

    kind: Literal["sparse_mla"]
    index_num_heads: LayerSize
    """Heads of the index, which share one small key per token."""
    index_head_dim: Annotated[int, Field(ge=2, le=2**20)]
    """Width of an index head; its first qk_rope_head_dim elements are rotated."""
    index_topk: Size
    """Tokens that a query attends to: those of the highest index scores."""
    index_layout: Literal["interleaved", "half"] = "half"
    """Elements of an index head that form a pair: neighbours (GLM-5), or those of its halves (DeepSeek-V3.2)."""

    @model_validator(mode="after")
    def _index_possible(self) -> Self:
        if not isinstance(self.mask, CausalMask):
            raise ValueError(
                f"sparse_mla takes mask causal: its index chooses among all earlier tokens, found {self.mask.kind}"
            )
        if self.q_lora_rank is None:
            raise ValueError("sparse_mla needs q_lora_rank: the index is asked with the query's latent")
        if isinstance(self.position, Rope) and self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim ({self.index_head_dim}) must be at least qk_rope_head_dim ({self.qk_rope_head_dim})"
            )
        return self

    def miniature(self, shrink: Shrink) -> Self:
        """Fewer and narrower index heads, at least as wide as their rotated part, that choose an eighth of the
        tokens.
        """
        heads = shrink.heads(self.index_num_heads)
        dim = shrink.per_head(self.index_head_dim, self.index_num_heads, heads)
        update = {"index_num_heads": heads, "index_head_dim": max(dim, self.qk_rope_head_dim)}
        return self.model_copy(update={**update, "index_topk": max(1, shrink.width(self.index_topk))})

    def dense(self) -> MLASpec:
        """The same attention to every earlier token."""
        sizes = {name: getattr(self, name) for name in type(self).model_fields if name not in _OF_THE_INDEX}
        return MLASpec(kind="mla", **sizes)
