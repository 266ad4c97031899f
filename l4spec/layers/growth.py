"""The laws by which caches grow with the context."""

from typing import Literal, NamedTuple


class Bound(NamedTuple):
    """The law by which a cache grows with the context: everything, or at most `size` tokens of a chunk or a window.

    A `state` does not grow: it is kept once per sequence, as if it were one token. A `compressed` cache has an entry
    for each `size` tokens, made when the last of them is read (DeepSeek-V4).
    """

    kind: Literal["full", "chunk", "window", "state", "compressed"]
    size: int | None = None

    @property
    def is_state(self) -> bool:
        """True if the size is per sequence, independent of its tokens."""
        return self.kind == "state"

    @property
    def tokens_per_row(self) -> int:
        """Tokens per row of an unbounded cache: 1 except for compressed ones."""
        return self.size or 1 if self.kind == "compressed" else 1

    @property
    def is_local(self) -> bool:
        """True if the cache stops growing at `size` tokens."""
        return self.kind in ("chunk", "window")

    def num_kept(self, context: int) -> int:
        """Rows in memory for a context of `context` tokens; 1 for a state of a sequence that has begun."""
        if self.is_state:
            return min(context, 1)
        if self.kind == "compressed":
            return context // self.tokens_per_row
        return context if self.size is None else min(context, self.size)

    def num_read(self, context: int) -> int:
        """Rows read by the decode step whose own token is the last of `context` tokens."""
        if self.kind == "chunk":
            assert self.size is not None
            return (context - 1) % self.size + 1 if context else 0
        return self.num_kept(context)

    def seen_before(self, position: int) -> int:
        """Tokens before `position` that the token there sees; a chunk is taken to begin there."""
        if self.kind == "chunk":
            return 0
        return position if self.size is None else min(position, self.size - 1)
