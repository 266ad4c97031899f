"""Sampling of still frames from a video: by rate or by number, at most as many as Llama 4 was trained with."""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from l4spec.errors import Problem
from l4spec.units import parse_duration

MOST_STILLS = 48
"""Images of one sequence in Llama 4's pre-training, stills of clips among them
(https://ai.meta.com/blog/llama-4-multimodal-intelligence/)."""
LONGEST_CLIP = 86_400
"""Seconds of a clip; a longer one is a mistake."""
MOST_FPS = 1_000


def read_clip(text: str) -> float:
    """Seconds from `60s`, `1.5 min`, `2 h` or a bare number of seconds. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(parse_duration(text))
    except ValueError:
        short = repr(text if len(text) <= 40 else f"{text[:40]}…")
        raise ValueError(f"expected a duration like 60s, 1.5 min or 2 h, found {short}") from None


class Stills(NamedTuple):
    """Times of a clip's stills, in seconds from its start; `sampled` is their number before the limit."""

    seconds: tuple[float, ...]
    sampled: int

    @property
    def count(self) -> int:  # type: ignore[override]  # tuple has a method of this name
        """Number of stills."""
        return len(self.seconds)


def stills_by_rate(duration: float, fps: float) -> Stills:
    """One still at the start and then `fps` per second; at most `MOST_STILLS`, evenly spaced over the clip."""
    step, length = 1 / Fraction(str(fps)), Fraction(str(duration))
    sampled = ceil(length / step)
    if sampled > MOST_STILLS:
        return Stills(_spread(length, MOST_STILLS), sampled)
    return Stills(tuple(float(index * step) for index in range(sampled)), sampled)


def stills_by_count(duration: float, count: int) -> Stills:
    """`count` stills, each in the middle of its share of the clip."""
    return Stills(_spread(Fraction(str(duration)), count), count)


def _spread(length: Fraction, count: int) -> tuple[float, ...]:
    return tuple(float(length * (2 * index + 1) / (2 * count)) for index in range(count))


def sampling_problems(video: object, fps: float | None, frames: int | None) -> Iterator[Problem]:
    """Problems of a clip's options in combination: `fps` or `frames` without a clip, both of them, or neither."""
    if video is None:
        for name in ("fps", "frames"):
            if {"fps": fps, "frames": frames}[name] is not None:
                yield Problem("samples a clip, and there is none", path=name, hint="give --video too")
    elif fps is None and frames is None:
        yield Problem("needs the number of frames to sample", path="video", hint="add --fps 1 or --frames 16")
    elif fps is not None and frames is not None:
        yield Problem("says what --frames says: leave one out", path="fps")


__all__ = [
    "LONGEST_CLIP",
    "MOST_FPS",
    "MOST_STILLS",
    "Stills",
    "read_clip",
    "sampling_problems",
    "stills_by_count",
    "stills_by_rate",
]
