"""Video codecs through PyAV (the extra `video`), one thread each: the same bytes on every machine with the same build."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from drivekd.images import RGBImage

_FPS = 12  # of nuScenes' cameras
_LEAST_PX = 64  # codecs refuse sides that are shorter than their largest block; a smaller picture's border is repeated


def available() -> bool:
    """PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def told(codec: str, stand_in: str) -> str:
    """Which of the two is used here."""
    return f"PyAV {importlib.metadata.version('av')}, {codec}" if available() else stand_in


def h265(image: RGBImage, *, quantiser: int) -> RGBImage:
    """uint8 RGB [H, W, 3], encoded as a key frame with H.265's quantiser (0 to 51, coarsest) and decoded."""
    parameters = f"qp={quantiser}:pools=none:frame-threads=1:log-level=none"
    packets = _encoded([image], "libx265", {"preset": "ultrafast", "x265-params": parameters})
    (decoded,) = _decoded(packets, "hevc")
    return _cropped(decoded, image)


def h264_last_frame(frames: Sequence[RGBImage], spoiled: Callable[[list[bytes]], list[bytes]]) -> RGBImage:
    """The last frame that a decoder shows of an H.264 stream with what `spoiled` makes of its frames' bytes.

    A frame has eight slices; an error costs the rest of one, which the decoder fills in from around and before. A frame that
    cannot be decoded at all leaves the one before on the screen; black when there is none.
    """
    parameters = "slices=8:keyint=50:qp=26:threads=1:log=-1"
    packets = _encoded(frames, "libx264", {"preset": "ultrafast", "tune": "zerolatency", "x264-params": parameters})
    shown = _decoded(spoiled(packets), "h264")
    return _cropped(shown[-1], frames[-1]) if shown else np.zeros_like(frames[-1])


def _encoded(frames: Sequence[RGBImage], codec: str, options: dict[str, str]) -> list[bytes]:
    import av

    height, width = (max(side + side % 2, _LEAST_PX) for side in frames[0].shape[:2])  # yuv420p: two pixels share a colour
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", Fraction(1, _FPS)
    encoder.framerate, encoder.thread_count, encoder.options = Fraction(_FPS, 1), 1, options
    packets: list[Any] = []
    for index, image in enumerate(frames):
        even = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuv420p")
        frame.pts = index
        packets += encoder.encode(frame)
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)]]


def _decoded(packets: Sequence[bytes], codec: str) -> list[RGBImage]:
    import av

    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.thread_count = 1
    frames: list[Any] = []
    for packet in [*(av.Packet(data) for data in packets), None]:
        try:
            frames += decoder.decode(packet)
        except av.error.FFmpegError:  # a frame that is broken beyond repair
            continue
    return [frame.to_ndarray(format="rgb24") for frame in frames]


def _cropped(decoded: RGBImage, image: RGBImage) -> RGBImage:
    return np.ascontiguousarray(decoded[: image.shape[0], : image.shape[1]])
