"""Video options of a request: still frames, their tiles and tokens."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import Field

from l4spec.errors import Problem
from l4spec.graph.layer_graph import LayerGraph
from l4spec.options import Option, read_count, read_number
from l4spec.stills import (
    LONGEST_CLIP,
    MOST_FPS,
    MOST_STILLS,
    Stills,
    read_clip,
    sampling_problems,
    stills_by_count,
    stills_by_rate,
)
from l4spec.tiling import grid_for, image_tokens, seen_tiles
from planners.frozen import Frozen

Video = Annotated[
    Annotated[float, Field(gt=0, le=LONGEST_CLIP)] | None,
    Option(
        "Length of a video in the prompt, as 60s, shown as still frames. With --fps or --frames.",
        metavar="DURATION",
        parse=read_clip,
        mode="serve",
        expects=f"a duration above 0 and at most {LONGEST_CLIP // 3600} h, as 60s",
    ),
]
Fps = Annotated[
    Annotated[float, Field(gt=0, le=MOST_FPS)] | None,
    Option(
        f"Still frames per second of the video, at most {MOST_STILLS} in all.",
        metavar="RATE",
        parse=read_number,
        mode="serve",
        expects=f"frames per second, a number above 0 and at most {MOST_FPS:,}",
    ),
]
Frames = Annotated[
    Annotated[int, Field(ge=1, le=MOST_STILLS)] | None,
    Option(
        "Number of still frames, evenly spaced over the video.",
        parse=read_count,
        mode="serve",
        expects=f"1 to {MOST_STILLS} frames, as many as Llama 4 was trained with",
    ),
]
FrameSize = Annotated[
    Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")] | None,
    Option(
        "Width and height of a frame in pixels; they determine its number of tiles.",
        metavar="WxH",
        mode="serve",
        default="as many tiles as the model allows",
        expects="width x height in pixels, as 1280x720",
    ),
]


class Clip(NamedTuple):
    """The options of a clip as they were given."""

    video: float | None
    fps: float | None
    frames: int | None
    frame_size: str | None

    @property
    def stills(self) -> Stills | None:
        """The requested stills; None without a clip, or without a rate or number."""
        if self.video is None:
            return None
        if self.frames is not None:
            return stills_by_count(self.video, self.frames)
        return None if self.fps is None else stills_by_rate(self.video, self.fps)


class VideoInfo(Frozen):
    """A planned clip. `sampled` counts the stills of the rate, `stills` those shown. Without a size, tiles are the
    most.
    """

    seconds: float
    fps: float | None
    sampled: int
    stills: int
    frame_size: str | None
    tiles_per_still: int
    tokens_per_still: int
    tokens: int

    @property
    def tiles(self) -> int:
        """Tiles of all stills."""
        return self.stills * self.tiles_per_still


def video_info(clip: Clip, graph: LayerGraph) -> VideoInfo | None:
    """The clip in tiles and tokens of the model; None without one, or for a model without vision."""
    if clip.video is None:
        return None
    vision, stills = graph.model.vision, clip.stills
    if vision is None or stills is None:
        return None
    cut = vision.max_tiles
    if clip.frame_size is not None:
        width, height = map(int, clip.frame_size.split("x"))
        cut = grid_for(height, width, vision.patch_embedding.image_size, vision.max_tiles).num_tiles
    tokens = image_tokens(cut, vision.num_tokens_per_tile, global_tile=vision.global_tile)
    return VideoInfo(
        seconds=clip.video,
        fps=clip.fps,
        sampled=stills.sampled,
        stills=stills.count,
        frame_size=clip.frame_size,
        tiles_per_still=seen_tiles(cut, global_tile=vision.global_tile),
        tokens_per_still=tokens,
        tokens=stills.count * tokens,
    )


def _frames_per_patch(graph: LayerGraph) -> int:
    vision = graph.model.vision
    return 1 if vision is None else vision.patch_embedding.temporal_patch_size


def video_problems(clip: Clip, graph: LayerGraph, prompt_tokens: int) -> Iterator[Problem]:
    """Problems of a clip's options in combination, and of a prompt that is shorter than its stills."""
    yield from sampling_problems(clip.video, clip.fps, clip.frames)
    if clip.frame_size is not None and clip.video is None:
        yield Problem(
            "is the size of a video's frames, and there is no video", path="frame_size", hint="give --video too"
        )
    if clip.video is not None and graph.model.vision is None:
        yield Problem("the model has no vision, so it takes no clip", path="video")
    elif clip.video is not None and (frames := _frames_per_patch(graph)) > 1:
        message = f"the model's patches cover {frames} frames of a video, and plans count still images only"
        yield Problem(message, path="video", hint="leave --video out, and --tiles counts images")
    info = video_info(clip, graph)
    if info is not None and info.tokens >= prompt_tokens:
        message = f"{info.stills} frames take {info.tokens:,} tokens, and a prompt here has {prompt_tokens:,}"
        yield Problem(message, path="video", hint="a longer --context, fewer frames, or a smaller --frame-size")


__all__ = ["Clip", "Fps", "FrameSize", "Frames", "Video", "VideoInfo", "video_info", "video_problems"]
