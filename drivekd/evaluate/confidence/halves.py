"""Two halves of the answers that share no scene, so that what is fitted on one is tried on streets that it has not seen."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from .judged import Judged


def halves(judged: Sequence[Judged], seed: int) -> tuple[list[Judged], list[Judged]]:
    """(to fit on, to report on), as equal as whole scenes allow. The same scenes give the same halves, in any order.

    Large scenes are dealt out first, each to the half that has fewer answers; among equals chance decides, by the seed.
    """
    by_scene: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_scene[one.scene].append(one)
    scenes = sorted(by_scene, key=lambda scene: (-len(by_scene[scene]), _draw(scene, seed)))
    parts: tuple[list[Judged], list[Judged]] = ([], [])
    for scene in scenes:
        first, second = parts
        (first if len(first) <= len(second) else second).extend(by_scene[scene])
    return parts


def _draw(scene: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {scene}".encode("utf-8", "surrogatepass")).digest()
