"""Position encodings: rotary embeddings with their scaling laws, 2-D rotary for images, or none."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import Count, PositiveFloat, Size, Spec
from l4spec.layers.declaration import RotaryTable


class LinearScaling(Spec):
    """Position interpolation: every frequency divided by `factor` (arXiv:2306.15595)."""

    kind: Literal["linear"]
    factor: PositiveFloat
    """Factor by which the context becomes longer."""


class Llama3Scaling(Spec):
    """Llama 3's scaling: low frequencies divided by `factor`, high ones kept, a smooth band between (Llama 3.1).

    With `low_freq_factor == high_freq_factor` there is no band, as in Llama 4 Scout.
    """

    kind: Literal["llama3"]
    factor: PositiveFloat
    """Divisor of the frequencies whose wavelength is long."""
    low_freq_factor: PositiveFloat
    """Wavelengths above original_max_seq_len / low_freq_factor are divided."""
    high_freq_factor: PositiveFloat
    """Wavelengths below original_max_seq_len / high_freq_factor are kept."""
    original_max_seq_len: Size
    """Context length of pre-training, in tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_freq_factor > self.high_freq_factor:
            raise ValueError("low_freq_factor must not exceed high_freq_factor")
        return self


class YarnScaling(Spec):
    """YaRN: interpolation by parts with an attention temperature (arXiv:2309.00071)."""

    kind: Literal["yarn"]
    factor: PositiveFloat
    """Factor by which the context becomes longer."""
    original_max_seq_len: Size
    """Context length of pre-training, in tokens."""
    beta_fast: PositiveFloat = 32.0
    """Rotations above which a frequency is kept."""
    beta_slow: PositiveFloat = 1.0
    """Rotations below which a frequency is divided."""
    truncate: bool = True
    """Round the ends of the band of blended pairs to whole pairs; gpt-oss does not."""
    mscale: PositiveFloat | None = None
    """Numerator of the attention factor (DeepSeek)."""
    mscale_all_dim: PositiveFloat | None = None
    """Denominator of the attention factor, and the scale of the logits in MLA (DeepSeek)."""


class ProportionalScaling(Spec):
    """Only the first pairs of a head are rotated, at their frequencies in the whole head (Gemma 4)."""

    kind: Literal["proportional"]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the pairs that are rotated, rounded down to whole pairs."""
    factor: PositiveFloat = 1.0
    """Divisor of their frequencies."""


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling | ProportionalScaling, Field(discriminator="kind")]


class ImageSections(Spec):
    """Number of pairs of a head that rotate by an image token's time, row and column (M-RoPE, arXiv:2409.12191).

    The three numbers of a text token are equal, so that text without images is rotated by plain positions.
    """

    time: Count
    """Pairs rotated by time, which is one value for a still image."""
    row: Count
    """Pairs rotated by the row in the image."""
    column: Count
    """Pairs rotated by the column in the image."""
    interleaved: bool = False
    """Alternate time, row and column from the first pair on (Qwen3-VL) instead of in sections (Qwen2.5-VL)."""

    @property
    def num_pairs(self) -> int:
        """Pairs of the rotated part of a head."""
        return self.time + self.row + self.column

    def axes(self) -> tuple[int, ...]:
        """Axis of rotation of each pair: 0 time, 1 row, 2 column."""
        if not self.interleaved:
            return (0,) * self.time + (1,) * self.row + (2,) * self.column
        ends = (0, 3 * self.row, 3 * self.column)
        return tuple(pair % 3 if pair < ends[pair % 3] else 0 for pair in range(self.num_pairs))

    @model_validator(mode="after")
    def _in_turns(self) -> Self:
        if any(self.axes().count(axis) != number for axis, number in enumerate((self.time, self.row, self.column))):
            raise ValueError(
                f"{self.row} pairs of row and {self.column} of column do not fit in turns into {self.num_pairs}"
            )
        return self


class Rope(Spec):
    """Rotary position embedding on queries and keys (arXiv:2104.09864)."""

    kind: Literal["rope"]
    theta: PositiveFloat
    """Base of the frequencies: theta ** (-2 i / rotary_dim)."""
    rotary_dim: Size | None = None
    """Rotated leading part of each head; the whole head when left out."""
    layout: Literal["interleaved", "half"] = "half"
    """Elements that form a pair: (2i, 2i+1) as in Llama 4, or (i, i + rotary_dim/2) as in Hugging Face's Llama."""
    scaling: RopeScaling | None = None
    """Change of the frequencies for contexts longer than in pre-training."""
    sections: ImageSections | None = None
    """Pairs rotated by an image token's time, row and column; null: all are rotated by the position."""

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.rotary_dim is not None and self.rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even, found {self.rotary_dim}")
        return self

    def sections_problem(self, head_dim: int) -> str | None:
        """Error message if the sections do not divide the rotated part of a head of `head_dim` elements, else None."""
        pairs = (self.rotary_dim or head_dim) // 2
        if self.sections is None or self.sections.num_pairs == pairs:
            return None
        return f"position.sections have {self.sections.num_pairs} pairs, and {pairs} of a head turn"


class Rope2d(Spec):
    """Rotary embedding over the patch grid: half of each head's frequencies are for x + 1, half for y + 1.

    Scores depend on differences of positions alone, so that the origin matters to a class token only.
    """

    kind: Literal["rope_2d"]
    theta: PositiveFloat
    """Base of the frequencies of each half."""
    layout: Literal["interleaved", "half"] = "interleaved"
    """Elements that form a pair: (2i, 2i+1) as in Llama 4, or (i, i + head_dim/2) as in Qwen's towers."""
    first: Literal["column", "row"] = "column"
    """Half of the frequencies that comes first: those of the column x (Llama 4), or those of the row y (Qwen)."""


class NoPosition(Spec):
    """No position information in this layer (NoPE)."""

    kind: Literal["none"]


Position = Annotated[Rope | Rope2d | NoPosition, Field(discriminator="kind")]


def rotations_of(position: Position, head_dim: int) -> tuple[RotaryTable, ...]:
    """Rotary tables of a layer with heads of `head_dim` elements; empty without rotary positions."""
    if isinstance(position, Rope):
        over: Literal["positions", "sections"] = "positions" if position.sections is None else "sections"
        return (RotaryTable(position, position.rotary_dim or head_dim, over),)
    return (RotaryTable(position, head_dim, "grid"),) if isinstance(position, Rope2d) else ()
