"""Image and video files: pixels as they are, and one line for what cannot be read."""

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from l4spec.errors import UserError
from l4spec.runtime.images import read_image, read_stills
from l4spec.runtime.images.read import MOST_PIXELS
from tests.runtime.images.clips import write_clip
from tests.runtime.images.processor import pattern

Image: Any = pytest.importorskip("PIL.Image")
pytest.importorskip("av")


def written(path: Path, pixels: torch.Tensor, **options: Any) -> Path:
    data = bytes(pixels.permute(1, 2, 0).contiguous().flatten().tolist())
    Image.frombytes("RGB", (pixels.shape[2], pixels.shape[1]), data).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_pixels_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    pixels = pattern(37, 53)
    assert torch.equal(read_image(written(tmp_path / name, pixels)), pixels)


def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    pixels = pattern(8, 12)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees
    assert torch.equal(read_image(written(tmp_path / "a.png", pixels, exif=exif)), pixels.rot90(-1, (1, 2)))


def test_a_grey_image_and_one_with_transparency_have_three_channels(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
        Image.new(mode, (5, 4)).save(path)
        assert read_image(path).shape == (3, 4, 5)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no image that can be read"),
        (b"hello", "no image that can be read"),
        (bomb(8001, 8001), f"expected 1 to {MOST_PIXELS:,} pixels"),
        (bomb(10_000, 10_000), "exceeds limit"),
        (bomb(60_000, 60_000), "exceeds limit"),
        (bomb(30, 30), "no image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that can be read"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_image(path)
    assert "bad.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_good_image_is_read_or_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "good.png", pattern(9, 9)).read_bytes()
    path = tmp_path / "cut.png"
    refused = 0
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            read_image(path)
        except UserError:
            refused += 1
    assert refused > 10


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for read in (read_image, read_stills):
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(UserError, match="no such file"):
                read(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def greys(stills: list[torch.Tensor]) -> list[float]:
    return [float(still.float().mean()) for still in stills]


def test_stills_by_number_are_the_frames_of_their_moments(clip: Path) -> None:
    """4 s of 5 frames a second: the middles of four parts are 0.5, 1.5, ... s, in frames 2, 7, 12 and 17 of 20."""
    stills = read_stills(clip, frames=4)
    assert [still.shape for still in stills] == [(3, 64, 64)] * 4
    assert greys(stills) == pytest.approx([20 + 10 * index for index in (2, 7, 12, 17)], abs=4)


def test_stills_by_rate_begin_at_the_start(clip: Path) -> None:
    assert greys(read_stills(clip, fps=1)) == pytest.approx([20 + 10 * index for index in (0, 5, 10, 15)], abs=4)
    assert len(read_stills(clip, fps=1000)) == 48


def test_what_is_no_clip_is_refused_in_one_line(clip: Path, tmp_path: Path) -> None:
    whole = clip.read_bytes()
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"hello",
        "cut.mp4": whole[: len(whole) // 2],
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n".encode(),
        "list.txt": f"ffconcat version 1.0\nfile '{clip}'\n".encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="no clip that can be read") as caught:
            read_stills(tmp_path / name, frames=2)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    with pytest.raises(UserError, match="holds no pictures"):
        read_stills(path, frames=1)
