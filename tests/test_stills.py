"""Stills of a clip: how many, when, and what cannot be sampled."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.stills import MOST_STILLS, read_clip, sampling_problems, stills_by_count, stills_by_rate

LENGTHS = st.floats(0.001, 86_400, allow_nan=False)


@pytest.mark.parametrize(
    ("duration", "fps", "count"), [(10, 1, 10), (10.5, 1, 11), (0.1, 10, 1), (0.3, 10, 3), (48, 1, 48), (60, 0.5, 30)]
)
def test_a_rate_makes_a_still_for_every_step_that_begins_in_the_clip(duration: float, fps: float, count: int) -> None:
    stills = stills_by_rate(duration, fps)
    assert (stills.count, stills.sampled) == (count, count)
    assert stills.seconds == pytest.approx([index / fps for index in range(count)])


def test_more_than_the_most_are_spread_over_the_clip() -> None:
    stills = stills_by_rate(60, 1)
    assert (stills.count, stills.sampled) == (48, 60)
    assert stills.seconds[:2] == (0.625, 1.875)
    assert stills.seconds == stills_by_count(60, MOST_STILLS).seconds


@given(LENGTHS, st.integers(1, MOST_STILLS))
def test_stills_by_number_lie_evenly_inside(duration: float, count: int) -> None:
    seconds = stills_by_count(duration, count).seconds
    assert len(seconds) == count
    assert 0 < seconds[0] <= seconds[-1] < duration
    steps = [b - a for a, b in pairwise(seconds)]
    assert steps == pytest.approx([duration / count] * (count - 1), rel=1e-6, abs=1e-9 * duration)


@given(LENGTHS, st.floats(0.001, 1000))
def test_stills_by_rate_lie_inside_and_are_never_too_many(duration: float, fps: float) -> None:
    stills = stills_by_rate(duration, fps)
    assert 1 <= stills.count <= min(stills.sampled, MOST_STILLS)
    assert all(0 <= second < duration for second in stills.seconds)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("1.5 min", 90), ("2 h", 7200), ("500 ms", 0.5), ("12", 12)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert read_clip(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "60 sec", "1:30", "s", "9" * 10_000 + "x"])
def test_other_words_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration like 60s") as caught:
        read_clip(text)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("video", "fps", "frames", "path"),
    [(None, 1.0, None, "fps"), (None, None, 3, "frames"), (9.0, None, None, "video"), (9.0, 1.0, 3, "fps")],
)
def test_a_clip_is_sampled_by_rate_or_by_number(
    video: float | None, fps: float | None, frames: int | None, path: str
) -> None:
    assert [problem.path for problem in sampling_problems(video, fps, frames)] == [path]
    assert not list(sampling_problems(9.0, 1.0, None))
    assert not list(sampling_problems(None, None, None))
