"""A rank that runs some of the tokens of long sequences: their prefill divided among context-parallel ranks."""

from dataclasses import replace
from typing import Any, Literal, NoReturn, Self

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.layers.common.cache import LayerCache
from l4spec.layers.common.parallel import gather, sum_over
from l4spec.runtime.cache import Cache, new_cache
from l4spec.runtime.layout import TokenBatch
from l4spec.runtime.parallel.model import RankModel
from l4spec.sharding.sequence import longest_run, runs_of, short_reason


class PrefillModel(RankModel):
    """The part of a model that one rank of a layout with cp > 1 holds: it prefills, and neither decodes nor trains.

    All ranks along cp are given the same whole sequences. Each runs the tokens that `own_tokens` cuts out and gives
    their logits, or with `logits="last"` every rank gives those of the last token of all. A cache has the rows of a
    rank's own tokens; `whole_cache` joins all ranks' to continue in a layout without cp.
    """

    def runs(self, num_tokens: int) -> tuple[range, ...]:
        """Runs of tokens per rank along cp. Raises UserError with the planner's reason for too short a sequence."""
        cp = self.mesh.layout.cp
        if reason := short_reason(self.graph, cp, num_tokens):
            raise UserError(f"{self.mesh.layout}: {reason}")
        return runs_of(self.graph, num_tokens, cp)

    def own_tokens(self, batch: Tensor) -> Tensor:
        """Of whole sequences [sequences, tokens, ...], this rank's tokens. Raises UserError for too short ones."""
        own = self.runs(batch.shape[1])[self.mesh.place.cp]
        return batch[:, own.start : own.stop]

    def new_cache(self, batch: int, max_len: int, dtype: torch.dtype | None = None) -> Cache:
        """Caches for this rank's tokens of sequences of at most `max_len`, as large on every rank as on the busiest."""
        self.runs(max_len)
        most = longest_run(self.graph, max_len, self.mesh.layout.cp)
        return replace(new_cache(self.nodes, batch, most, dtype or self.dtype, self.device), max_len=max_len)

    def whole_cache(self, cache: Cache, max_len: int) -> Cache:
        """The cache of a rank that reads whole sequences, with room for `max_len` tokens; the same on all ranks.

        Every rank along cp must call it. Heads stay divided among tensor-parallel ranks. Raises ValueError if `max_len`
        is too small.
        """
        if cache.length > max_len:
            raise ValueError(f"the caches hold {cache.length:,} tokens, more than {max_len:,}")
        dtype = next((layer.data.dtype for layer in cache.layers.values()), self.dtype)
        whole = new_cache(self.nodes, cache.batch, max_len, dtype, self.device)
        if cache.length:
            runs = self.runs(cache.length)
            for name, layer in cache.layers.items():
                _join(whole.layers[name], gather(layer.data, self.mesh.axis("cp")), runs)
            whole.advance(cache.length, None)
        return whole

    def train(self, mode: bool = True) -> Self:
        """Refuses to: gradients do not travel between context-parallel ranks yet."""
        return super().train(mode) if not mode else self._refuse("training with cp is not there yet")

    def loss(self, *inputs: Any, **named: Any) -> NoReturn:
        """Refuses to."""
        self._refuse("losses with cp are not there yet")

    def _forward(
        self, batch: TokenBatch, image_features: Tensor | None, cache: Cache | None, logits: Literal["all", "last"]
    ) -> Tensor:
        own = self._own_batch(batch, cache)
        if image_features is not None:
            places = self._image_mask(batch.input_ids, image_features)
            image_features = _own_features(places, image_features, own.layout.runs[self.mesh.place.cp])
        with torch.no_grad():
            result = super()._forward(own, image_features, cache, logits)
        if cache is not None:
            cache.length = batch.layout.num_tokens
        if logits == "all":
            return result
        cp = self.mesh.axis("cp")
        return sum_over(result if cp.index == cp.size - 1 else torch.zeros_like(result), cp)

    def _own_batch(self, batch: TokenBatch, cache: Cache | None) -> TokenBatch:
        """This rank's tokens of whole sequences, which follow those of earlier ranks."""
        layout = batch.layout
        if not layout.is_uniform or layout.num_new is not None:
            self._refuse("padded and packed sequences are not divided among ranks")
        if cache is not None and cache.length:
            hint = "`whole_cache` joins the ranks' caches to continue with a layout without cp"
            self._refuse(f"cp is for prefills, and {cache.length:,} tokens are cached already", hint)
        runs = self.runs(layout.num_tokens)
        own = runs[self.mesh.place.cp]
        columns = slice(own.start, own.stop)
        here = replace(layout, num_tokens=len(own), start=own.start, positions=layout.positions[columns], runs=runs)
        return TokenBatch(batch.input_ids[:, columns], here)

    def _refuse(self, what: str, hint: str = "leave cp out") -> NoReturn:
        raise UserError(f"{self.mesh.layout}: {what}", hint=hint)


def _own_features(places: Tensor, features: Tensor, own: range) -> Tensor:
    """The image vectors [vectors, hidden] of a run, of those that fill `places` [rows, tokens] in order."""
    order = (places.flatten().cumsum(0) - 1).view_as(places)
    columns = slice(own.start, own.stop)
    return features.flatten(0, -2)[order[:, columns][places[:, columns]]]


def _join(whole: LayerCache, parts: Tensor, runs: tuple[range, ...]) -> None:
    """Copy the last tokens that `whole` has slots for out of the ranks' caches [ranks, batch, slots, width]."""
    for run, part in zip(runs, parts, strict=True):
        kept = range(max(run.start, run.stop - part.shape[1], runs[-1].stop - whole.num_slots), run.stop)
        if kept:
            positions = torch.arange(kept.start, kept.stop, device=part.device)
            whole.data[:, positions % whole.num_slots] = part[:, (positions - run.start) % part.shape[1]]
