"""Images arrive in the other process as they were sent, through memory that leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.errors import DataError
from drivekd.images import RGBImage
from drivekd.runtime.resilience.shared_images import HEADER_BYTES, SharedImageReader, SharedImages

Frame = dict[str, RGBImage]
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def frame(sizes: list[tuple[int, int]], seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    return {f"CAM_{index}": rng.integers(0, 256, (*size, 3), np.uint8) for index, size in enumerate(sizes)}


@pytest.fixture
def shared() -> Iterator[SharedImages]:
    memory = SharedImages()
    yield memory
    memory.close()


@given(st.lists(st.lists(SIZES, max_size=6), min_size=1, max_size=6))
def test_frames_of_any_sizes_arrive_in_order(frames: list[list[tuple[int, int]]]) -> None:
    shared = SharedImages()
    reader = SharedImageReader(shared.descriptor)
    for seed, sizes in enumerate(frames):
        images = frame(sizes, seed)
        found = reader.read(shared.write(images))
        assert list(found) == list(images)
        for camera, image in images.items():
            assert np.array_equal(found[camera], image)
    shared.close()


def test_pictures_of_a_larger_one_arrive(shared: SharedImages) -> None:
    """Parts, mirrored ones and other strides are copied as they look."""
    whole = frame([(30, 40)], 0)["CAM_0"]
    images = {"part": whole[5:20, 3:9], "mirrored": whole[:, ::-1], "turned": whole.transpose(1, 0, 2)}
    found = SharedImageReader(shared.descriptor).read(shared.write(images))
    assert all(np.array_equal(found[name], image) for name, image in images.items())


def test_readers_cannot_write_and_keep_views_of_before_it_grew(shared: SharedImages) -> None:
    reader = SharedImageReader(shared.descriptor)
    small = frame([(8, 8)], 0)
    view = reader.read(shared.write(small))["CAM_0"]
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0] = 1
    large = frame([(8, 8), (2000, 1000)], 1)
    found = reader.read(shared.write(large))
    assert np.array_equal(found["CAM_1"], large["CAM_1"])
    assert np.array_equal(view, large["CAM_0"]), "one memory, reused: the older view shows the newer image of its place"


def test_it_grows_to_the_largest_frame_only(shared: SharedImages) -> None:
    sizes = []
    for seed, height in enumerate((10, 500, 20, 500, 30)):
        shared.write(frame([(height, 100)] * 2, seed))
        sizes.append(os.fstat(shared.descriptor).st_size)
    assert sizes[1:] == [sizes[1]] * 4
    assert sizes[1] < HEADER_BYTES + 2 * (500 * 100 * 3 + 64)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(shared: SharedImages, image: RGBImage) -> None:
    before = frame([(6, 6)], 0)
    placed = shared.write(before)
    with pytest.raises(DataError, match="CAM_BACK"):
        shared.write({"CAM_FRONT": np.zeros((6, 6, 3), np.uint8), "CAM_BACK": image})
    assert np.array_equal(SharedImageReader(shared.descriptor).read(placed)["CAM_0"], before["CAM_0"]), "half a frame was written"


def test_a_frame_is_cancelled_with_those_before_it(shared: SharedImages) -> None:
    reader = SharedImageReader(shared.descriptor)
    assert not reader.cancelled(1)
    shared.cancel(2)
    assert [reader.cancelled(number) for number in (1, 2, 3)] == [True, True, False]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_it_has_no_name_and_goes_with_its_descriptor() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    memory = SharedImages()
    memory.write(frame([(100, 100)], 0))
    assert os.readlink(f"/proc/self/fd/{memory.descriptor}").startswith("/memfd:"), "nothing in /dev/shm that a kill would leave"
    memory.close()
    memory.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
