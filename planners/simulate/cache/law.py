"""Blocks of a sequence: by the growth laws of its layers, grouped as an engine groups them.

A block holds `block_size` tokens of one group of layers. A group that keeps every token takes a block for each
`block_size` tokens; one with a window or chunk gives blocks back that no query can reach any more; a state takes one
page for good.
"""

from dataclasses import dataclass, field
from typing import Literal

from l4spec.errors import UserError
from l4spec.units import ceil_div
from planners.catalog.engines import Engine, LayerGroupsKv
from planners.counts.kv_cache import CacheRow, layer_group_size


@dataclass(frozen=True, slots=True)
class LocalGroups:
    """`count` groups of layers that keep the last `size` tokens (window), or those of the current chunk."""

    count: int
    kind: Literal["window", "chunk"]
    size: int

    def unreachable(self, tokens: int) -> int:
        """Tokens from the beginning that the next query of a sequence with `tokens` tokens cannot reach.

        The next query is number `tokens`: its window are itself and the `size` - 1 tokens before it, its chunk begins
        at the last multiple of `size`.
        """
        if self.kind == "chunk":
            return tokens // self.size * self.size
        return max(0, tokens - self.size + 1)


@dataclass(frozen=True, slots=True)
class CacheLaw:
    """Blocks of a sequence: `full_groups` groups keep every token, `local` ones less, `pages` are taken at once."""

    block_size: int
    full_groups: int = 1
    local: tuple[LocalGroups, ...] = ()
    pages: int = 0
    groups: int = field(init=False)
    """Blocks that `block_size` new tokens take."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", self.full_groups + sum(group.count for group in self.local))

    def blocks(self, tokens: int) -> int:
        """Blocks that `tokens` tokens take before any are given back."""
        return ceil_div(tokens, self.block_size) * self.groups

    def released(self, tokens: int) -> int:
        """Of `blocks(tokens)`, those that local groups have given back once the tokens are computed."""
        return sum(group.count * (group.unreachable(tokens) // self.block_size) for group in self.local)

    def kept_blocks(self, tokens: int) -> int:
        """Blocks that a sequence of `tokens` computed tokens keeps."""
        return self.blocks(tokens) - self.released(tokens) + self.pages


def cache_law(rows: tuple[CacheRow, ...], engine: Engine, block_size: int) -> CacheLaw:
    """The law of a model's cache rows under an engine's policy.

    Without a policy of groups every layer keeps every token and a block is one for all layers. With groups (vLLM's
    hybrid manager), layers of one law are divided into groups of the size of the smallest set.
    """
    if any(row.bound.is_state for row in rows):
        raise UserError("a simulation does not manage states of recurrent layers yet", hint="plan it instead")
    if any(row.bound.kind == "compressed" for row in rows):
        raise UserError("a simulation does not manage compressed caches yet", hint="plan it instead")
    if not isinstance(engine.kv, LayerGroupsKv) or all(row.bound.size is None for row in rows):
        return CacheLaw(block_size)
    size, full, local = layer_group_size(rows), 0, dict[tuple[str, int], int]()
    counts: dict[tuple[str, int | None], int] = {}
    for row in rows:
        counts[row.bound.kind, row.bound.size] = counts.get((row.bound.kind, row.bound.size), 0) + row.count
    for (kind, bound), count in counts.items():
        groups = ceil_div(count, size)
        if bound is None:
            full += groups
        else:
            local[kind, bound] = groups
    return CacheLaw(block_size, full, tuple(_local(kind, bound, count) for (kind, bound), count in local.items()))


def _local(kind: str, size: int, count: int) -> LocalGroups:
    return LocalGroups(count, "chunk" if kind == "chunk" else "window", size)
