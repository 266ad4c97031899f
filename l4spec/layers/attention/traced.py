"""Attention of a compiled decode step: one opaque operator, which attends as the layer does outside the compiler.

What a step attends to grows with every token, and where it is written wanders round rings and chunks. A compiler that
saw that would compile again and again; one that sees an operator compiles once, for every position of every cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l4spec.layers.attention.cache import LayerCache

if TYPE_CHECKING:
    from l4spec.layers.attention.compute import Attention
    from l4spec.layers.common.modules import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredCache(LayerCache):
    """Stands for a layer's cache while a step is traced, and learns in `attentions` how the layer attends.

    It holds nothing: a layer that reads or writes it itself, instead of giving it to an `Attention`, fails.
    """

    node_id: str
    attentions: "dict[str, Attention]"
    data: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))

    def defer(self, attention: "Attention", query: Tensor, new: Sequence[Tensor]) -> Tensor:
        """Attend when the step runs: [batch, 1, heads, width of a value]."""
        self.attentions[self.node_id] = attention
        width = attention.expand(tuple(new))[1].shape[-1]
        result: Tensor = torch.ops.l4spec.attend(query, torch.cat(tuple(new), dim=-1), self.node_id, width)
        return result


@contextmanager
def attending(attentions: "dict[str, Attention]", context: "Context") -> Iterator[None]:
    """What deferred layers attend to inside: the caches and the layout of `context`."""
    token = _RUNNING.set((attentions, context))
    try:
        yield
    finally:
        _RUNNING.reset(token)


_RUNNING: "ContextVar[tuple[dict[str, Attention], Context]]" = ContextVar("running step")


torch.library.define("l4spec::attend", "(Tensor query, Tensor row, str node_id, int width) -> Tensor")


@torch.library.impl("l4spec::attend", "default")  # `custom_op` would add 50 us to every layer of every step
def _attend(query: Tensor, row: Tensor, node_id: str, width: int) -> Tensor:
    attentions, context = _RUNNING.get()
    return attentions[node_id](query, (row,), context, context.cache_of(node_id)).contiguous()


@torch.library.register_fake("l4spec::attend")  # type: ignore[untyped-decorator]  # as torch left it
def _(query: Tensor, row: Tensor, node_id: str, width: int) -> Tensor:
    return query.new_empty(*query.shape[:-1], width)
