"""Which camera took each picture of a record, and the one order in which a model sees them.

Names are a record's own (meta.cameras), else those in the pictures' paths (.../CAM_BACK/x.jpg). A prompt has no names: a model
knows a camera by its place alone, so pictures are put into the order that training showed them in, by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from drivekd.errors import DataError
from drivekd.sample import CAMERAS, Sample

_CAMERA = re.compile(r"(?:^|[/_])(CAM_(?:FRONT|BACK)(?:_LEFT|_RIGHT)?)(?!_?[A-Za-z])")


def camera_names(sample: Sample) -> tuple[str, ...]:
    """The camera of each image; () where the record does not tell all of them apart, as with two moments of one camera."""
    stated = sample.cameras or cameras_in_paths([str(path) for path in sample.images])
    return stated if len(set(stated)) == len(stated) else ()


def cameras_in_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """The cameras that picture paths name, by folder or file name; () unless each names one and no two the same.

    >>> cameras_in_paths(["samples/CAM_BACK/n015__CAM_BACK__1533.jpg", "CAM_FRONT.jpg"])
    ('CAM_BACK', 'CAM_FRONT')
    """
    found = [_CAMERA.findall(path) for path in paths]
    names = tuple(matches[-1] for matches in found if matches)
    return names if len(names) == len(set(names)) == len(paths) else ()


def named_sample(sample: Sample, cameras: Sequence[str]) -> Sample:
    """The sample with its cameras named and its pictures in the order of `cameras`; () = as it is.

    A record that names none has those of `cameras`, place by place, when it has as many pictures.
    Raises DataError: a camera that is not among them, or nothing to tell which is which.
    """
    if not cameras:
        return sample
    names = camera_names(sample)
    if not names and len(sample.images) == len(cameras):
        return replace(sample, cameras=tuple(cameras))
    if not names:
        raise DataError(
            f"{sample.source}: images: cannot tell the cameras of {len(sample.images)} images; expected their names in "
            f"meta.cameras or in the paths, or as many images as there are cameras ({len(cameras)}: {', '.join(cameras)})"
        )
    if unknown := [name for name in names if name not in cameras]:
        raise DataError(f"{sample.source}: images: the camera {unknown[0]} is none of {', '.join(cameras)}")
    images = dict(zip(names, sample.images, strict=True))
    ordered = tuple(name for name in cameras if name in images)
    return replace(sample, images=tuple(images[name] for name in ordered), cameras=ordered)


def camera_order(orders: Iterable[Sequence[str]], known: Sequence[str] = ()) -> tuple[str, ...]:
    """One order of all cameras named, from the orders in which records name them. known: an order that stands already.

    The longest order counts most, of equally long ones the commonest, then the first. A camera that it lacks is put behind its
    neighbour in the next one; cameras that only ever come alone stand last, as in CAMERAS.
    """
    counts = Counter(tuple(order) for order in orders)
    ranked = sorted(counts, key=lambda order: (-len(order), -counts[order]))  # stable: of equals the first seen
    merged = list(known)
    for order in ranked:
        if len(order) > 1:
            _merge(merged, order)
    alone = {order[0] for order in ranked if order} - set(merged)
    return (*merged, *sorted(alone, key=lambda name: (CAMERAS.index(name) if name in CAMERAS else len(CAMERAS), name)))


def follows(order: Sequence[str], cameras: Sequence[str]) -> bool:
    """Whether an order names cameras as they stand in `cameras`, some left out."""
    return [name for name in cameras if name in order] == list(order)


def _merge(merged: list[str], order: Sequence[str]) -> None:
    place = 0
    for name in order:
        if name not in merged:
            merged.insert(place, name)
        place = merged.index(name) + 1
