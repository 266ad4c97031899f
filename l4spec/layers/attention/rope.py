"""Rotary position embedding: frequencies with their scaling laws, and the rotation itself."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.layers.attention.positions import (
    LinearScaling,
    Llama3Scaling,
    ProportionalScaling,
    Rope,
    Rope2d,
    YarnScaling,
)
from l4spec.layers.common.modules import Context, group_last, wide


def inverse_frequencies(rope: Rope, dim: int) -> Tensor:
    """The angle per position of each of the dim / 2 pairs, fp32 on the CPU, scaled by `rope.scaling`.

    Computed in fp32 by the reference's own formula, because a difference in the last bit grows with the position.
    """
    plain = _plain_frequencies(rope.theta, dim)
    match rope.scaling:
        case LinearScaling():
            return plain / rope.scaling.factor
        case Llama3Scaling():
            return _llama3(plain, rope.scaling)
        case YarnScaling():
            return _yarn(rope.theta, dim, rope.scaling)
        case ProportionalScaling(share=share, factor=factor):
            turned = torch.arange(dim // 2, device="cpu") < int(share * dim // 2)
            return plain * turned / factor
    return plain


def _plain_frequencies(theta: float, dim: int) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return 1.0 / (theta**exponents)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Long wavelengths divided, short ones kept, between them a blend that is linear in 1 / wavelength."""
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_seq_len
    wavelength = 2 * math.pi / plain
    scaled = torch.where(wavelength > original / low, plain / scaling.factor, plain)
    if low == high:
        return scaled
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    is_between = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(is_between, blended, scaled)


def _yarn(theta: float, dim: int, scaling: YarnScaling) -> Tensor:
    """Pairs that rotate more than beta_fast times in the original context are kept, those below beta_slow divided."""

    def pair_with(rotations: float) -> float:
        return dim * math.log(scaling.original_max_seq_len / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    powers = theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    return (1.0 / (scaling.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature, 0.1 mscale ln(factor) + 1 (arXiv:2309.00071, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def attention_factor(rope: Rope) -> float:
    """Factor on the rotated queries and keys: 1 except for YaRN."""
    scaling = rope.scaling
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_scale(scaling.factor, scaling.mscale) / yarn_scale(scaling.factor, scaling.mscale_all_dim)
    return yarn_scale(scaling.factor)


@dataclass(slots=True, eq=False)
class Rotation:
    """The rotation of the first `dim` elements of each head.

    Its table, for the positions of a forward pass, is made once for all layers with an equal rotation. Interleaved
    pairs are rotated as complex numbers if they are at `even` offsets, which complex views need.
    """

    rope: Rope | Rope2d
    dim: int
    key: str
    is_interleaved: bool
    even: bool
    frequencies: dict[torch.device, Tensor]

    @classmethod
    def of(cls, rope: Rope | Rope2d, dim: int, *beside: int) -> "Rotation":
        """The rotation of a spec; `dim` is the rotated width of a head, `beside` rotations that share its tensors."""
        if isinstance(rope, Rope2d):
            frequencies, interleaved = _plain_frequencies(rope.theta, dim // 2), rope.layout == "interleaved"
        else:
            frequencies, interleaved = inverse_frequencies(rope, dim), rope.layout == "interleaved"
        key = f"rotation {dim} {rope.model_dump_json()}"
        even = all(width % 2 == 0 for width in beside)
        return cls(rope, dim, key, interleaved, even, {frequencies.device: frequencies})

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Rotate `x` [batch, tokens, heads, head_dim] by its tokens' positions, in fp32, back in its own dtype."""
        turned = self._rotate(x if self.dim == x.shape[-1] else x[..., : self.dim], context)
        return turned if self.dim == x.shape[-1] else torch.cat((turned, x[..., self.dim :]), dim=-1)

    def _rotate(self, x: Tensor, context: Context) -> Tensor:
        if self.is_interleaved and self.even and not torch.compiler.is_compiling():
            table = context.once(self.key + " complex", lambda: torch.complex(*self._cos_sin(context)))
            pairs = torch.view_as_complex(group_last(wide(x), -1, 2))
            return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
        cos = context.once(self.key + " cos", lambda: self._cos_sin(context)[0])
        sin = context.once(self.key + " sin", lambda: self._cos_sin(context)[1])
        return self._turned(x, cos, sin)

    def at(self, x: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """Rotate `x` [batch, tokens, heads, dim] by positions [tokens] or [batch, tokens]; `back`: the other way."""
        cos, sin = self._tables(positions.float()[..., None] * self._frequencies_on(positions.device))
        return self._turned(x, cos, -sin if back else sin)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.is_interleaved:
            even, odd = group_last(wide(x), -1, 2).unbind(-1)
            return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)
        first, second = wide(x).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    def _cos_sin(self, context: Context) -> tuple[Tensor, Tensor]:
        """Each [tokens, 1, dim / 2] or [batch, tokens, 1, dim / 2], fp32."""
        return self._tables(self._angles(context))

    def _tables(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        angles = angles[..., None, :]
        factor = attention_factor(self.rope) if isinstance(self.rope, Rope) else 1.0
        return (angles.cos() * factor, angles.sin() * factor) if factor != 1.0 else (angles.cos(), angles.sin())

    def _angles(self, context: Context) -> Tensor:
        positions, places = context.layout.positions, context.layout.places
        frequencies = self._frequencies_on(positions.device)
        if isinstance(self.rope, Rope2d):
            assert places is not None, "2-D rope is for the patches of an image"
            ordered = places.flip(-1) if self.rope.first == "row" else places
            return (ordered.float()[..., None] * frequencies).flatten(-2)
        if self.rope.sections is not None and places is not None:
            return places.float()[..., list(self.rope.sections.axes())] * frequencies
        return positions.float()[..., None] * frequencies

    def _frequencies_on(self, device: torch.device) -> Tensor:
        frequencies = self.frequencies.get(device)
        if frequencies is None:
            frequencies = self.frequencies[device] = next(iter(self.frequencies.values())).to(device)
        return frequencies
