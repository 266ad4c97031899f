"""Small image and video files for tests."""

from pathlib import Path

import pytest


def write_clip(path: Path, *, seconds: int = 4, rate: int = 5, size: int = 64) -> Path:
    """A clip whose picture gets brighter from frame to frame: frame i of n has the grey 20 + 200 i / n."""
    av = pytest.importorskip("av")
    image = pytest.importorskip("PIL.Image")
    count = seconds * rate
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(count):
            grey = 20 + 200 * index // count
            frame = av.VideoFrame.from_image(image.new("RGB", (size, size), (grey, grey, grey)))
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
