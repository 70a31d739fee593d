"""Where `<image>` stands in a user's text, and what is left when the pictures are put in front, as every prompt has them.

The meaning is kept, and the marker moved, when its place carries none: all markers together, in front, at the end, or behind a
text that is complete (it ends in a colon, a full stop or a line break). A camera's name right before a marker, as in
"CAM_BACK: <image>", becomes the name of that picture's camera. Any other text between or around markers says which picture is
meant, and is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from drivekd.sample import CAMERAS

from .problem import Faults

IMAGE_MARKER = "<image>"
OTHER_MARKERS = ("<video>", "<audio>")
_LABEL = re.compile(
    rf"(?:^|(?<=[\s,;]))({'|'.join(sorted(CAMERAS, key=len, reverse=True))})\s*(?:camera|image|view)?\s*[:=]?\s*$", re.IGNORECASE
)
_COMPLETE = (":", ".", "!", "?", "\n")


@dataclass(frozen=True)
class Unmarked:
    """question: without markers and camera labels. cameras: those that labels name, all or none."""

    question: str
    cameras: tuple[str, ...] = ()


def unmark(prompt: str, num_pictures: int, field: str, faults: Faults) -> Unmarked:
    """Take the markers out of a user's text; `field` names it in problems."""
    for marker in OTHER_MARKERS:
        if marker in prompt:
            faults.add("messages", f"{field}: {marker} is not read; only pictures are")
    pieces = prompt.split(IMAGE_MARKER)
    num_markers = len(pieces) - 1
    if num_markers == 0 and num_pictures:
        faults.note("no picture marker: pictures put in front")
        return Unmarked(prompt.strip())
    if num_markers != num_pictures:
        faults.add("picture marker", f"images: {num_pictures} given for {num_markers} {IMAGE_MARKER} in {field}")
        return Unmarked("".join(pieces).strip())
    if not any(piece.strip() for piece in pieces[:-1]):
        return Unmarked(pieces[-1].strip())
    return _moved(pieces, field, faults)


def _moved(pieces: list[str], field: str, faults: Faults) -> Unmarked:
    """pieces: the text before each marker, then the text behind the last."""
    labels = [_LABEL.search(piece) for piece in pieces[:-1]]
    if all(labels) and all(
        not piece[: label.start()].strip(" \t\n,;") for piece, label in zip(pieces[1:-1], labels[1:], strict=True) if label
    ):
        faults.note("camera label before a picture marker taken as the camera's name")
        cameras = tuple(label[1].upper() for label in labels if label)
        before = pieces[0][: labels[0].start()] if labels[0] else ""
        return Unmarked(_joined(before, pieces[-1]), cameras)
    before, behind = pieces[0].rstrip(" \t"), pieces[-1]
    together = not any(piece.strip() for piece in pieces[1:-1])
    if not together or (behind.strip() and not before.endswith(_COMPLETE)):
        faults.add(
            "picture marker",
            f"{field}: every {IMAGE_MARKER} must stand before the question: here its place says which picture is meant",
        )
        return Unmarked("".join(pieces).strip())
    faults.note("picture marker moved in front of the question")
    return Unmarked(_joined(before, behind))


def _joined(before: str, behind: str) -> str:
    first, second = before.strip(), behind.strip()
    return f"{first}{chr(10) if before.endswith(chr(10)) else ' '}{second}" if first and second else first + second
