"""Plays pictures to camera topics, over and over, until it is told to stop or --count frames are out.

A program of its own, so that messages really cross the middleware. A subscriber seen in the graph is not yet matched:
therefore frames repeat, with a new stamp each time. Pictures come from image files, folders of them, or a video.
stdout: one JSON line a published frame, {"stamp_ns": ..., "index": which frame of the source}.
Exit codes: 0 done or stopped, 1 failed, 2 asked wrongly.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import signal
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from PIL import Image as Picture
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from drivekd.errors import DataError, DrivekdError
from drivekd.image_format import FORMATS_TAKEN, IMAGE_SUFFIXES, suffixes_not_taken
from drivekd.images import load_image
from drivekd.runtime.pictures.frames import video_pictures

from .input.conversions import RGBImage


def image_paths(paths: Sequence[Path]) -> list[Path]:
    """Files as they stand; a folder gives its images sorted by name. Raises DataError when nothing is found."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if (others := suffixes_not_taken(file.name for file in path.iterdir())) and not images:
                raise DataError(f"{path}: holds {others}, which are not taken: convert them to {FORMATS_TAKEN}, 8 bits a channel")
            found += images
        else:
            found.append(path)
    if not found:
        raise DataError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in: {', '.join(map(str, paths)) or 'nothing'}")
    return found


def file_frames(paths: Sequence[Path], num_cameras: int) -> list[list[RGBImage]]:
    """Load everything, num_cameras pictures a frame. Raises DataError when they do not divide evenly."""
    files = image_paths(paths)
    if len(files) % num_cameras:
        raise DataError(f"{len(files)} images do not make whole frames of {num_cameras} cameras")
    pictures = [load_image(file) for file in files]
    return [pictures[start : start + num_cameras] for start in range(0, len(pictures), num_cameras)]


def video_frames(video: Path) -> Iterator[RGBImage]:
    """A video file picture by picture. Raises UsageError without PyAV, DataError when it cannot be read."""
    return (picture.image for picture in video_pictures(video))


SPEED_LEAD_S = 0.02  # topics do not keep their order among each other: the speed goes ahead of its pictures
SETTLE_S = 0.3  # the middleware sends in the background: time for the last frame to leave


class Player(Node):
    """Publishes one picture to each camera topic, and the speed before them. jpeg_quality 0: uncompressed."""

    def __init__(self, topics: Sequence[str], twist_topic: str, *, jpeg_quality: int, reliable: bool) -> None:
        super().__init__("drivekd_player")
        self._jpeg_quality = jpeg_quality
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=reliability)
        kind = CompressedImage if jpeg_quality else Image
        self._cameras = {topic: self.create_publisher(kind, topic, qos) for topic in topics}
        self._twist = self.create_publisher(TwistStamped, twist_topic, 10)

    def play(self, pictures: Sequence[RGBImage], speed_mps: float | None) -> int:
        """Publish one frame, all cameras with the same stamp; returns the stamp in ns."""
        now = self.get_clock().now()
        stamp = now.to_msg()
        if speed_mps is not None:
            message = TwistStamped(header=Header(stamp=stamp, frame_id="base_link"))
            message.twist.linear.x = speed_mps
            self._twist.publish(message)
            time.sleep(SPEED_LEAD_S)
        for (topic, publisher), picture in zip(self._cameras.items(), pictures, strict=True):
            frame_id = topic.strip("/").removesuffix("/compressed").removesuffix("/image")
            publisher.publish(self._message(picture, stamp, frame_id))
        return int(now.nanoseconds)

    def _message(self, picture: RGBImage, stamp: Time, frame_id: str) -> Image | CompressedImage:
        header = Header(stamp=stamp, frame_id=frame_id)
        if self._jpeg_quality:
            buffer = io.BytesIO()
            Picture.fromarray(picture).save(buffer, "JPEG", quality=self._jpeg_quality)
            return CompressedImage(header=header, format="jpeg", data=array("B", buffer.getvalue()))
        height, width, _ = picture.shape
        # array('B'), not the ndarray: rclpy checks an ndarray element by element, 526 ms at 1080p instead of 3.5 ms.
        data = array("B", picture.tobytes())
        return Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, play, return the exit code."""
    options = _parser().parse_args(arguments)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        _play(options)
    except DrivekdError as error:
        sys.stderr.write(f"player: {error}\n")
        return error.exit_code
    finally:
        rclpy.try_shutdown()
    return 0


def _play(options: argparse.Namespace) -> None:
    player = Player(
        options.topic, options.twist_topic, jpeg_quality=options.jpeg_quality, reliable=options.reliability == "reliable"
    )
    due_s = time.monotonic()
    for number, (index, pictures) in enumerate(_frames(options)):
        if number == options.count > 0:
            break
        speed_mps = options.speed[index % len(options.speed)] if options.speed else None
        stamp_ns = player.play(pictures, speed_mps)
        sys.stdout.write(json.dumps({"stamp_ns": stamp_ns, "index": index}) + "\n")
        sys.stdout.flush()
        due_s = max(due_s + 1 / options.rate, time.monotonic())
        time.sleep(due_s - time.monotonic() if due_s > time.monotonic() else 0.0)
    time.sleep(SETTLE_S)


def _frames(options: argparse.Namespace) -> Iterator[tuple[int, Sequence[RGBImage]]]:
    """Endless (index in the source, one picture a camera)."""
    if options.video is None:
        yield from itertools.cycle(enumerate(file_frames(options.image, len(options.topic))))
    while True:
        for index, picture in enumerate(video_frames(options.video)):
            yield index, [picture] * len(options.topic)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="player", description="Play pictures to camera topics.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, nargs="+", help="image files or folders, one picture per topic and frame")
    source.add_argument("--video", type=Path, help="video file; every topic shows the same picture (needs PyAV)")
    parser.add_argument("--topic", action="append", required=True, help="camera topic; repeat for more cameras")
    parser.add_argument("--twist-topic", default="/drivekd/input/twist", help="topic of the ego speed")
    parser.add_argument("--speed", type=float, nargs="+", default=[], help="ego speed of each frame, m/s; none: not sent")
    parser.add_argument("--rate", type=_positive, default=2.0, help="frames a second")
    parser.add_argument("--count", type=int, default=0, help="stop after so many frames; 0: play until told to stop")
    parser.add_argument("--jpeg-quality", type=int, default=0, help="1-95: CompressedImage; 0: Image, rgb8")
    parser.add_argument("--reliability", choices=["best_effort", "reliable"], default="reliable")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
