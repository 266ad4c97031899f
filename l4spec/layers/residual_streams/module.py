"""The torch module of residual streams."""

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.cache import split_last
from l4spec.layers.common.modules import Context, LayerModule, empty, group_last, linear, rms_norm, wide
from l4spec.layers.residual_streams.spec import ResidualStreamsSpec


class ResidualStreams(LayerModule):
    """One step between residual streams [batch, tokens, streams * hidden] and a layer [batch, tokens, hidden].

    Weights of a token are [streams] to read, [streams] to write and [streams, streams] to mix, in one vector of fp32.
    """

    def __init__(self, spec: ResidualStreamsSpec, width: Width) -> None:
        super().__init__()
        self.step, self.streams = spec.step, spec.streams
        every = spec.streams.count * width.hidden_size
        if spec.step == "weigh":
            self.fn, self.base = empty(spec.streams.num_weights, every), empty(spec.streams.num_weights)
            self.scale = empty(3)
        elif spec.step == "join":
            self.fn, self.base, self.scale = empty(spec.streams.count, every), empty(spec.streams.count), empty(1)

    def forward(self, *inputs: Tensor, context: Context) -> Tensor:
        """Result of the step, for inputs in the order of the declaration."""
        result: Tensor = getattr(self, f"_{self.step}")(*inputs)
        return result

    def _copy(self, x: Tensor) -> Tensor:
        return x.repeat(*[1] * (x.dim() - 1), self.streams.count)

    def _projected(self, streams: Tensor) -> Tensor:
        normed = rms_norm(wide(streams), None, self.streams.norm_eps)
        return linear(normed, wide(self.fn))

    def _weigh(self, streams: Tensor) -> Tensor:
        count, eps = self.streams.count, self.streams.eps
        widths = (count, count, count * count)
        parts, bases = split_last(self._projected(streams), widths), split_last(wide(self.base), widths)
        scales = wide(self.scale).unbind()
        read, write, mix = (part * scale + base for part, scale, base in zip(parts, scales, bases, strict=True))
        mixing = group_last(mix, count, count).softmax(dim=-1) + eps
        mixing = mixing / (mixing.sum(dim=-2, keepdim=True) + eps)
        for _ in range(self.streams.sinkhorn_iterations - 1):
            mixing = mixing / (mixing.sum(dim=-1, keepdim=True) + eps)
            mixing = mixing / (mixing.sum(dim=-2, keepdim=True) + eps)
        return torch.cat((read.sigmoid() + eps, 2 * write.sigmoid(), mixing.flatten(-2)), dim=-1)

    def _collapse(self, streams: Tensor, weights: Tensor) -> Tensor:
        return self._read(streams, weights[..., : self.streams.count])

    def _read(self, streams: Tensor, weights: Tensor) -> Tensor:
        """The sum of all streams by their weights [..., streams]."""
        by_stream = group_last(streams, self.streams.count, -1)
        return (weights[..., None] * by_stream).sum(dim=-2).to(streams.dtype)

    def _spread(self, streams: Tensor, output: Tensor, weights: Tensor) -> Tensor:
        count = self.streams.count
        _, write, mix = split_last(weights.to(streams.dtype), (count, count, count * count))
        mixed = group_last(mix, count, count).transpose(-1, -2) @ group_last(streams, count, -1)
        written: Tensor = write[..., None] * output[..., None, :] + mixed
        return written.flatten(-2)

    def _join(self, streams: Tensor) -> Tensor:
        weights = (self._projected(streams) * wide(self.scale) + wide(self.base)).sigmoid() + self.streams.eps
        return self._read(streams, weights)
