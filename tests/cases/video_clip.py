"""A road clip on disk, from pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from drivekd.images import RGBImage


def write_video(path: Path, images: Sequence[RGBImage], codec: str = "ffv1", pix_fmt: str = "bgr0", rate: int = 10) -> Path:
    """ffv1 is lossless: pixels come back as they were."""
    av = pytest.importorskip("av", reason="needs PyAV")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for image in images:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
