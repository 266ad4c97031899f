"""Schema of attention to a window of keys and to entries that each summarize several tokens."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.attention.positions import Rope
from l4spec.layers.base import LayerSpec, PositiveFloat, Shrink, Size, Spec


class EntryIndex(Spec):
    """An index of small keys that chooses the entries that a query attends to."""

    num_heads: Size
    """Heads of the index, which share one small key per entry."""
    head_dim: Annotated[int, Field(ge=2, le=2**20)]
    """Width of an index head; its last rope_head_dim elements are rotated."""
    topk: Size
    """Entries that a query attends to: those of the highest index scores."""


class Compression(Spec):
    """Entries that summarize the keys of several tokens, weighted by a gate; a query sees those of finished windows."""

    ratio: Annotated[int, Field(ge=2, le=2**20)]
    """Tokens per entry."""
    overlap: bool = False
    """Make an entry also of the window before its own, with separate keys and gates."""
    index: EntryIndex | None = None
    """Index that selects entries; null: a query attends to all of them."""

    @property
    def num_series(self) -> int:
        """Keys and gates of a token: one for its own window, and one for the next where windows overlap."""
        return 2 if self.overlap else 1

    @property
    def reach(self) -> int:
        """Tokens that an entry is made of."""
        return self.ratio * self.num_series


class CompressedAttentionSpec(LayerSpec):
    """Attention of one shared key, which is its value, to a window and to compressed entries (DeepSeek-V4)."""

    kind: Literal["compressed_attention"]
    num_heads: Size
    """Query heads; all share one key per token, which is also its value."""
    head_dim: Size
    """Width of a head."""
    rope_head_dim: Size
    """Width of the last part of a head, which is rotated by position; the same part of the output is rotated back."""
    q_lora_rank: Size
    """Rank of the query's low-rank projection."""
    num_output_groups: Size
    """Groups of heads, each narrowed to output_lora_rank before the output projection."""
    output_lora_rank: Size
    """Width of a group's result."""
    window: Size
    """Tokens that a query sees uncompressed, its own included."""
    position: Rope
    """Rotation of queries, keys, entries and the index."""
    norm_eps: PositiveFloat
    """eps of the RMSNorms on queries, keys and entries."""
    compression: Compression | None = None
    """Compressed entries for tokens before the window; null: the window alone."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.num_heads % self.num_output_groups:
            raise ValueError(f"num_output_groups ({self.num_output_groups}) must divide num_heads ({self.num_heads})")
        if self.rope_head_dim % 2 or self.rope_head_dim > self.head_dim:
            raise ValueError(f"rope_head_dim ({self.rope_head_dim}) must be even and at most head_dim")
        if self.position.rotary_dim not in (None, self.rope_head_dim):
            raise ValueError("compressed_attention rotates rope_head_dim elements: leave position.rotary_dim out")
        if self.position.sections is not None:
            raise ValueError("compressed_attention turns by positions alone: leave position.sections out")
        index = self.compression.index if self.compression else None
        if index is not None and index.head_dim < self.rope_head_dim:
            raise ValueError(f"index.head_dim ({index.head_dim}) must be at least rope_head_dim ({self.rope_head_dim})")
        return self

    @property
    def group_width(self) -> int:
        """Width of the heads of a group together."""
        return self.num_heads * self.head_dim // self.num_output_groups

    def narrowed(self, tp: int) -> Self:
        """Groups of heads divided; the shared key, entries and the index are whole on every rank."""
        update = {"num_heads": self.num_heads // tp, "num_output_groups": self.num_output_groups // tp}
        return self.model_copy(update=update)

    def miniature(self, shrink: Shrink) -> Self:
        """Fewer and narrower heads, shorter windows, and of entries as many fewer tokens each and chosen ones."""
        groups = shrink.heads(self.num_output_groups)
        heads = groups * shrink.heads(self.num_heads // self.num_output_groups)
        head_dim = shrink.per_head(self.head_dim, self.num_heads, heads)
        rope = min(self.rope_head_dim, head_dim - head_dim % 2, 8)
        update = {
            "num_heads": heads,
            "num_output_groups": groups,
            "head_dim": head_dim,
            "rope_head_dim": rope,
            "q_lora_rank": shrink.width(self.q_lora_rank),
            "output_lora_rank": shrink.width(self.output_lora_rank),
            "window": shrink.width(self.window),
            "compression": self.compression and _smaller(self.compression, shrink, rope),
        }
        return self.model_copy(update=update)


def _smaller(compression: Compression, shrink: Shrink, rope: int) -> Compression:
    index = compression.index
    if index is not None:
        heads = shrink.heads(index.num_heads)
        dim = max(rope, shrink.per_head(index.head_dim, index.num_heads, heads))
        index = EntryIndex(num_heads=heads, head_dim=dim, topk=max(1, shrink.width(index.topk)))
    return compression.model_copy(update={"ratio": max(2, shrink.width(compression.ratio)), "index": index})
