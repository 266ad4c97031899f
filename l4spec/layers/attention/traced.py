"""Attention of a compiled decode step: one opaque operator, which attends as the layer does outside the compiler.

The attended rows grow with every token, and the place of writing moves in rings and chunks. With these in the graph a
compiler would compile again and again; with an operator it compiles once, for every position of every cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from l4spec.layers.common.cache import Attend, LayerCache, Rows
from l4spec.layers.common.modules import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredCache(LayerCache):
    """Stands for a layer's cache while a step is traced, and learns in `attentions` how the layer attends.

    It holds nothing: a layer that reads or writes it itself, instead of giving it to an `Attention`, fails.
    """

    node_id: str
    attentions: dict[str, Attend]
    data: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    defers: ClassVar[bool] = True

    def defer(self, attend: Attend, query: Tensor, new: Rows, width: int) -> Tensor:
        """Attend when the step runs: [batch, 1, heads, width of a value]."""
        self.attentions[self.node_id] = attend
        result: Tensor = torch.ops.l4spec.attend(query, torch.cat(new, dim=-1), self.node_id, width)
        return result


@contextmanager
def attending(attentions: dict[str, Attend], context: Context) -> Iterator[None]:
    """Context manager that gives deferred attention layers the caches and the layout of `context`."""
    token = _RUNNING.set((attentions, context))
    try:
        yield
    finally:
        _RUNNING.reset(token)


_RUNNING: ContextVar[tuple[dict[str, Attend], Context]] = ContextVar("running step")


torch.library.define("l4spec::attend", "(Tensor query, Tensor row, str node_id, int width) -> Tensor")


@torch.library.impl("l4spec::attend", "default")  # `custom_op` would add 50 us to every layer of every step
def _attend(query: Tensor, row: Tensor, node_id: str, width: int) -> Tensor:
    attentions, context = _RUNNING.get()
    return attentions[node_id](query, (row,), context, context.cache_of(node_id)).contiguous()


@torch.library.register_fake("l4spec::attend")  # type: ignore[untyped-decorator]  # as torch left it
def _(query: Tensor, row: Tensor, node_id: str, width: int) -> Tensor:
    return query.new_empty(*query.shape[:-1], width)
