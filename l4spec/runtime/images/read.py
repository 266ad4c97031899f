"""Files to pixels: images by Pillow, clips by PyAV; both come with `pip install 'l4spec[vision]'`.

A file is refused by its header, before it is decoded, where it is larger than a photograph or a clip can be; nothing
but the named file is opened, whatever it refers to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from l4spec.errors import Problem, UserError
from l4spec.stills import LONGEST_CLIP, MOST_FPS, Stills, stills_by_count, stills_by_rate

if TYPE_CHECKING:
    from av.container import InputContainer
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
MOST_PIXELS = 64_000_000
MOST_BYTES = 1 << 28
"""Of an image file; a clip is read as it plays and may have any size."""
_HINT = "pip install 'l4spec[vision]'"


def read_image(path: Path) -> Tensor:
    """The pixels of an image file, [3, height, width] in uint8, rotated by its EXIF data. Raises UserError."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("reading images needs Pillow", hint=_HINT) from None
    _require_file(path, MOST_BYTES)
    what = f"is no image that can be read ({', '.join(FORMATS)})"
    with _refusals(path, what), catch_warnings(), path.open("rb") as file:
        simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            _require_pixels(path, *image.size)
            return _pixels(image)


def read_stills(path: Path, *, fps: float | None = None, frames: int | None = None) -> list[Tensor]:
    """Stills of a clip, each [3, height, width] in uint8, by a rate or by a number. Raises UserError.

    A still is the frame that is seen at its moment: the last one that begins at it or before.
    """
    try:
        import av
    except ImportError:
        raise UserError("reading clips needs PyAV", hint=_HINT) from None
    _require_file(path, None)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    what = f"is no clip that can be read ({CONTAINERS})"
    with _refusals(path, what), path.open("rb") as file, av.open(file, "r", options=options) as container:
        return list(_stills(path, container, fps, frames))


def _stills(path: Path, container: "InputContainer", fps: float | None, frames: int | None) -> Iterator[Tensor]:
    if not container.streams.video:
        raise UserError([Problem("holds no pictures", path=str(path))])
    stream = container.streams.video[0]
    _require_pixels(path, stream.codec_context.width, stream.codec_context.height)
    moments = _sampled(_duration(path, container), fps, frames).seconds
    stream.thread_type = "AUTO"
    start = stream.start_time or 0
    last: Tensor | None = None
    index = 0
    for frame in container.decode(stream):
        begins = float(((frame.pts or 0) - start) * (stream.time_base or 1))
        while index < len(moments) and last is not None and begins > moments[index]:
            yield last
            index += 1
        if index == len(moments):
            return
        _require_pixels(path, frame.width, frame.height)
        to_image: Callable[[], Image] = frame.to_image
        last = _pixels(to_image())
    if last is None:
        raise UserError([Problem("holds no picture that can be decoded", path=str(path))])
    for _ in moments[index:]:
        yield last


def _duration(path: Path, container: "InputContainer") -> float:
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) / 1_000_000
    if not 0 < seconds <= LONGEST_CLIP:
        message = f"expected a clip of at most {LONGEST_CLIP // 3600} h that says how long it is, found {seconds:g} s"
        raise UserError([Problem(message, path=str(path))])
    return seconds


def _sampled(seconds: float, fps: float | None, frames: int | None) -> Stills:
    if frames is not None:
        return stills_by_count(seconds, frames)
    assert fps is not None, "the options were checked together"
    return stills_by_rate(seconds, min(fps, MOST_FPS))


def _pixels(image: "Image") -> Tensor:
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image).convert("RGB")
    flat = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8)
    return flat.view(upright.height, upright.width, 3).permute(2, 0, 1).contiguous()


def _require_file(path: Path, most_bytes: int | None) -> None:
    if not path.is_file():
        raise UserError([Problem("no such file", path=str(path))])
    if most_bytes is not None and path.stat().st_size > most_bytes:
        raise UserError([Problem(f"expected at most {most_bytes >> 20} MiB", path=str(path))])


def _require_pixels(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MOST_PIXELS:
        message = f"expected 1 to {MOST_PIXELS:,} pixels, found {width:,} x {height:,}"
        raise UserError([Problem(message, path=str(path))])


@contextmanager
def _refusals(path: Path, what: str) -> Iterator[None]:
    """Inside, whatever a decoder makes of a damaged file is a UserError that names it."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError([Problem(f"{what}: {reason}", path=str(path))]) from None


def read_all(images: Sequence[Path], video: Path | None, fps: float | None, frames: int | None) -> list[Tensor]:
    """Images in the order given, and after them the stills of a clip."""
    read = [read_image(path) for path in images]
    return read if video is None else read + read_stills(video, fps=fps, frames=frames)


__all__ = ["CONTAINERS", "FORMATS", "read_all", "read_image", "read_stills"]
