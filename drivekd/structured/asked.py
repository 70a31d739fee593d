"""One labelled record as the readings see it: question, what was answered (an option's own words for its letter), tags in px."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from drivekd.data.answer_forms import options
from drivekd.errors import DataError
from drivekd.runtime.answers.named_parts import named_parts
from drivekd.sample import Capability, Sample
from drivekd.tags import FRAME_HEIGHT_PX, FRAME_WIDTH_PX, Tag, find_tags

from .pictures import PictureSizes

_LETTER = re.compile(r"[\s{(\[*]*([A-H])(?:[.):,}\]]|\s*$)")


@dataclass(frozen=True)
class Asked:
    """sample: labelled. parts: of the answer, by lower-case name, the first of each name."""

    sample: Sample
    sizes: PictureSizes
    parts: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        parts: dict[str, str] = {}
        for name, value in named_parts(self.answer)[1]:
            parts.setdefault(name.lower(), value.strip())
        object.__setattr__(self, "parts", parts)

    @property
    def capability(self) -> Capability:
        """The record's."""
        return self.sample.capability

    @property
    def question(self) -> str:
        """Without the options."""
        return re.split(r"\boptions\s*:", self.sample.question, maxsplit=1, flags=re.IGNORECASE)[0]

    @property
    def answer(self) -> str:
        """As written."""
        return self.sample.answer or ""

    @property
    def stated(self) -> str | None:
        """What is answered, in words: the part "Final", else the text; of a choice the option's words, None for a letter that
        is none."""
        text = self.parts.get("final") or self.answer
        offered = options(self.sample.question)
        if not offered:
            return text
        letter = _LETTER.match(text)
        return offered.get(letter[1]) if letter else None

    def tags(self, text: str) -> list[Tag]:
        """The well-formed tags of a text whose camera the record shows, or may show."""
        cameras = self.sample.cameras
        return [tag for tag in find_tags(text, cameras=None) if not cameras or tag.camera in cameras]

    def position_px(self, camera: str, x: float, y: float) -> list[int] | None:
        """Of a point (0..1) in its camera's picture; None where that is not known, or the point lies outside."""
        size_px = self._size_px(camera)
        if size_px is None or not (0 <= x <= 1 and 0 <= y <= 1):
            return None
        return [min(int(share * size), size - 1) for share, size in zip((x, y), size_px, strict=True)]

    def position_of_frame_px(self, camera: str, x_px: float, y_px: float) -> list[int] | None:
        """Of a point in px of nuScenes' 1600 x 900, as DriveLM's boxes are."""
        return self.position_px(camera, x_px / FRAME_WIDTH_PX, y_px / FRAME_HEIGHT_PX)

    def _size_px(self, camera: str) -> tuple[int, int] | None:
        images = self.sample.images
        if self.sample.cameras:
            images = tuple(path for path, name in zip(images, self.sample.cameras, strict=True) if name == camera)
        try:
            sizes = {self.sizes.of(path) for path in images}
        except DataError as error:
            raise DataError(f"{self.sample.source}: images: {error}") from error
        return sizes.pop() if len(sizes) == 1 else None
