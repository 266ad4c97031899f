"""A clip in a plan: its stills are images, whose tiles the tower sees and whose tokens stand in the prompt."""

from typing import Any

import pytest

from l4spec.errors import UserError
from l4spec.report.page import to_text
from l4spec.report.plan_page import plan_page
from planners.plan import plan
from planners.request import DEFAULT_CONTEXT, PlanRequest
from tests.planners.models import graph


def test_a_minute_at_one_a_second_is_48_stills_of_17_tiles() -> None:
    planned = plan(graph("scout"), video="60s", fps=1.0)
    video = planned.deployment.video
    assert video is not None
    assert (video.stills, video.sampled, video.tiles_per_still, video.tokens_per_still) == (48, 60, 17, 2467)
    assert video.tokens == 48 * 2467
    assert planned.deployment.num_tiles == 48 * 17
    assert planned.deployment.context == DEFAULT_CONTEXT + 48 * 2467
    text = to_text(plan_page(planned))
    assert "60 s, 48 of 60 frames at 1 per second; 17 tiles and 2,467 tokens per frame, 118,416 tokens" in " ".join(
        text.split()
    )


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"), [("336x336", 1, 147), ("640x336", 3, 437), ("1280x720", 13, 1887)]
)
def test_a_size_says_how_many_tiles_a_still_has(size: str, tiles: int, tokens: int) -> None:
    video = plan(graph("scout"), video=10.0, frames=4, frame_size=size).deployment.video
    assert video is not None
    assert (video.stills, video.tiles_per_still, video.tokens) == (4, tiles, 4 * tokens)


def test_stills_cost_what_as_many_images_cost() -> None:
    asked: dict[str, Any] = {"gpus": "8xH100", "context": 100_000}
    clip = plan(graph("scout"), video=30.0, frames=3, **asked)
    images = plan(graph("scout"), images=3, **asked)
    assert clip.deployment.num_tiles == images.deployment.num_tiles
    assert clip.memory_per_device == images.memory_per_device
    assert clip.latency == images.latency
    assert PlanRequest(video=30.0, frames=3, images=2).all_images == 5


def test_a_model_without_a_tile_of_the_whole_is_counted_so() -> None:
    whole = graph("scout").model.vision
    assert whole is not None
    tiny = plan(graph("tiny/scout"), video=1.0, frames=1, context=200).deployment.video
    vision = graph("tiny/scout").model.vision
    assert tiny is not None
    assert vision is not None
    cut = vision.max_tiles
    assert tiny.tiles_per_still == cut + (1 if vision.global_tile and cut > 1 else 0)
    assert tiny.tokens == tiny.tiles_per_still * vision.num_tokens_per_tile + (cut if cut > 1 else 0) + 3


def problems(model: str = "scout", **asked: Any) -> dict[str | None, str]:
    with pytest.raises(UserError) as caught:
        plan(graph(model), **asked)
    return {problem.path: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("asked", "path", "words"),
    [
        ({"video": 60.0}, "video", "needs the number of frames"),
        ({"video": 60.0, "fps": 1.0, "frames": 3}, "fps", "leave one out"),
        ({"fps": 1.0}, "fps", "there is none"),
        ({"frame_size": "9x9"}, "frame_size", "there is no video"),
        ({"video": 0.0, "fps": 1.0}, "video", "above 0"),
        ({"video": -1.0, "fps": 1.0}, "video", "above 0"),
        ({"video": 1e9, "fps": 1.0}, "video", "at most 24 h"),
        ({"video": float("nan"), "fps": 1.0}, "video", "expected a duration"),
        ({"video": "soon", "fps": 1.0}, "video", "expected a duration"),
        ({"video": 60.0, "frames": 49}, "frames", "1 to 48"),
        ({"video": 60.0, "frames": 0}, "frames", "1 to 48"),
        ({"video": 60.0, "frames": 2, "frame_size": "0x9"}, "frame_size", "as 1280x720"),
        ({"video": 60.0, "fps": 1.0, "context": 8192}, "video", "48 frames take 118,416 tokens"),
        ({"video": 60.0, "fps": 1.0, "mode": "train"}, "video", "no part in training"),
    ],
)
def test_what_cannot_be_is_refused_by_name(asked: dict[str, Any], path: str, words: str) -> None:
    assert words in problems(**asked)[path]


def test_a_model_without_vision_takes_no_clip() -> None:
    assert "no vision" in problems("mobilellm-r1-950m", video=3.0, fps=1.0)["video"]


def test_output_tokens_leave_room_for_the_stills() -> None:
    asked: dict[str, Any] = {"video": 10.0, "frames": 2, "frame_size": "336x336", "context": 400}
    assert plan(graph("scout"), output_tokens=100, **asked).deployment.video is not None
    assert "a prompt here has 290" in problems(output_tokens=110, **asked)["video"]
