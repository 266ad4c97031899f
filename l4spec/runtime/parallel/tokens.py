"""Sequence parallelism, run: between layers that are cut, tensor-parallel ranks hold a share of the tokens each.

Of the input that a cut layer gathers autograd keeps a rank's share alone; the backward pass gathers it once more.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.layers.common.parallel import Axis, all_tokens, gather_tokens, own_tokens, scatter_sums, tokens_of_ranks
from l4spec.sharding.token_split import TokenUse


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """Execution of the layers of a pass, by node id, with the tokens divided among the ranks along `tp`."""

    tp: Axis
    uses: Mapping[str, TokenUse]
    checkpointing: Checkpointing

    def run(self, module: LayerModule, inputs: Sequence[Tensor | None], context: Context) -> Tensor:
        """A layer on this rank: from its share of the tokens to its share, or from ids, or to logits of all."""
        use = self.uses[module.node_id]
        if use == "own" or (use == "whole" and any(x is None for x in inputs)):  # without an image the text passes
            return _result(module(*inputs, context=context))
        first, *rest = inputs
        assert first is not None
        if use == "embedding":
            return scatter_sums(_result(module(first, context=context)), self.tp)
        if use == "whole":
            return own_tokens(_result(module(all_tokens(first, self.tp), *rest, context=context)), self.tp)
        if self.checkpointing == "full" and use == "cut":  # a block's input alone is kept
            result = _result(module(gather_tokens(first, self.tp), context=context))
        else:
            whole = _Gathered(first, self.tp)
            with whole.kept_as_shares():
                result = _result(module(whole.take(), context=context))
        return result if use == "head" else scatter_sums(result, self.tp)


def _result(result: Any) -> Tensor:
    assert isinstance(result, Tensor)
    return result


class _Gathered:
    """All tokens of a layer's input, of which autograd saves a share that is gathered again once."""

    def __init__(self, share: Tensor, tp: Axis) -> None:
        self.tokens: Tensor | None = gather_tokens(share, tp)
        self.share, self.tp = share.detach(), tp
        self.storage = self.tokens.untyped_storage().data_ptr()
        self.num_saved = 0

    def take(self) -> Tensor:
        """The tokens, which are forgotten here."""
        tokens, self.tokens = self.tokens, None
        assert tokens is not None
        return tokens

    def kept_as_shares(self) -> AbstractContextManager[None]:
        """Surrounds the layer that is given the tokens."""
        return saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> object:
        if tensor.untyped_storage().data_ptr() != self.storage:
            return tensor
        self.num_saved += 1
        return tensor.size(), tensor.stride(), tensor.storage_offset()

    def _unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if self.tokens is None:
            self.tokens = tokens_of_ranks(self.share, self.tp)
        tokens, self.num_saved = self.tokens, self.num_saved - 1
        if not self.num_saved:
            self.tokens = None
        return torch.as_strided(tokens, *kept)
