"""Every picture setting holds the same promises: names, shapes, seeds, severities, cameras."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from drivekd.errors import DataError, UsageError
from drivekd.evaluate.corruptions import DEFAULT_SEVERITY, GROUPS, SETTINGS, codecs, corrupted_frame, frame_seed, implementation
from drivekd.images import RGBImage
from drivekd.sample import CAMERAS

CORRUPTIONS = tuple(DEFAULT_SEVERITY)
BLACK = {"NoImage", "CameraCrash", "FrameLost"}  # what they do to a camera that they hit


def street(height: int = 90, width: int = 160, seed: int = 0) -> RGBImage:
    """Muted colours, edges, sky and shade: what a road picture has."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8))
    picture = np.asarray(blobs.resize((width, height)).filter(ImageFilter.GaussianBlur(1))).astype(float)
    grey = picture.mean(axis=2, keepdims=True)
    muted = 0.8 * grey + 0.2 * picture
    sky = np.linspace(70, -20, height)[:, None, None]
    return (0.7 * muted + 30 + sky).clip(0, 255).astype(np.uint8)


def six(height: int = 45, width: int = 80) -> dict[str, RGBImage]:
    return {camera: street(height, width, seed) for seed, camera in enumerate(CAMERAS)}


def change(image: RGBImage, setting: str, severity: int, seeds: int = 4) -> float:
    """Mean absolute change of a camera that is hit."""
    changes = []
    for seed in range(seeds):
        made = corrupted_frame({"CAM_FRONT": image}, setting, severity=severity, seed=frame_seed(seed, "frame"))["CAM_FRONT"]
        changes.append(np.abs(made.astype(int) - image).mean())
    return float(np.mean(changes))


def same(left: Mapping[str, RGBImage], right: Mapping[str, RGBImage]) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[name], right[name]) for name in left)


def test_the_names_are_drivebenchs_and_each_is_in_one_group() -> None:
    assert len(SETTINGS) == 17
    assert SETTINGS[:2] == ("clean", "NoImage")
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(CORRUPTIONS)
    assert list(GROUPS) == ["weather", "external", "sensor", "motion", "transmission"]
    assert all(1 <= severity <= 5 for severity in DEFAULT_SEVERITY.values())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", [(45, 80), (33, 51), (80, 45), (1, 1), (2, 300)])
def test_shape_and_type_stay_and_the_given_pictures_too(setting: str, shape: tuple[int, int]) -> None:
    given = {"CAM_FRONT": street(90, 160)[: shape[0], : shape[1]].copy() if shape[1] <= 160 else np.zeros((*shape, 3), np.uint8)}
    before = given["CAM_FRONT"].copy()
    for severity in (1, 5):
        made = corrupted_frame(given, setting, severity=severity, seed=1)
        assert made["CAM_FRONT"].shape == before.shape
        assert made["CAM_FRONT"].dtype == np.uint8
        assert made["CAM_FRONT"].flags.c_contiguous
        assert not np.shares_memory(made["CAM_FRONT"], given["CAM_FRONT"])
        assert np.array_equal(given["CAM_FRONT"], before)


def test_clean_is_clean_and_no_image_is_black() -> None:
    assert same(corrupted_frame(six(), "clean", seed=0), six())
    assert all(not image.any() for image in corrupted_frame(six(), "NoImage", seed=0).values())


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_camera_does_not_depend_on_order_company_or_thread(setting: str) -> None:
    images, seed = six(), frame_seed(3, "scene/frame")
    whole = corrupted_frame(images, setting, seed=seed)
    assert same(corrupted_frame(images, setting, seed=seed), whole)
    backwards = corrupted_frame(dict(reversed(images.items())), setting, seed=seed)
    assert list(backwards) == list(reversed(images))
    assert all(np.array_equal(backwards[name], whole[name]) for name in images)
    with ThreadPoolExecutor(6) as pool:
        alone = pool.map(lambda name: corrupted_frame({name: images[name]}, setting, seed=seed)[name], images)
        assert all(np.array_equal(one, whole[name]) for name, one in zip(images, alone, strict=True))


@pytest.mark.parametrize(
    "setting", sorted(set(CORRUPTIONS) - {"Brightness", "ColorQuant", "Saturate", "ZoomBlur", "H256ABRCompression"})
)
def test_another_frame_is_corrupted_another_way(setting: str) -> None:
    made = [corrupted_frame(six(90, 160), setting, severity=3, seed=frame_seed(0, f"frame {index}")) for index in range(4)]
    assert any(not same(made[0], other) for other in made[1:])


def test_a_seed_is_the_runs_and_the_frames() -> None:
    assert frame_seed(0, "a") == frame_seed(0, "a")
    assert len({frame_seed(seed, frame) for seed in (0, 1, 11) for frame in ("a", "1a", "")}) == 9


def test_another_process_makes_the_same_pictures() -> None:
    script = (
        "import hashlib, numpy as np\n"
        "from drivekd.evaluate.corruptions import *\n"
        "image = np.random.default_rng(0).integers(0, 256, (45, 80, 3), dtype=np.uint8)\n"
        "digest = hashlib.sha256()\n"
        "for name in SETTINGS:\n"
        "    digest.update(corrupted_frame({'CAM_FRONT': image}, name, seed=frame_seed(0, 'f'))['CAM_FRONT'].tobytes())\n"
        "print(digest.hexdigest(), end='')"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": str(Path(__file__).resolve().parents[4]), "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        ).stdout
        for threads in ("1", "4")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 64


@pytest.mark.parametrize("setting", sorted(set(CORRUPTIONS) - {"CameraCrash", "FrameLost", "Fog"}))
def test_a_worse_severity_changes_more(setting: str) -> None:
    image = street(180, 320)
    changes = [change(image, setting, severity) for severity in range(1, 6)]
    assert changes == sorted(changes), changes
    assert changes[4] > 1.15 * changes[0]


def test_thicker_fog_leaves_less_of_the_picture() -> None:
    """Fog itself is as bright as many a picture, so what counts is what is seen through it: pictures that differ by 40 levels."""
    dark, light = np.full((90, 160, 3), 90, np.uint8), np.full((90, 160, 3), 130, np.uint8)
    dark[0, 0] = light[0, 0] = 255  # the brightest of both
    seen = [
        float(
            np.subtract(
                *(corrupted_frame({"c": image}, "Fog", severity=s, seed=0)["c"].astype(float) for image in (light, dark))
            ).mean()
        )
        for s in range(1, 6)
    ]
    # 0.6: rounding to levels; 40 * 1 / (1 + thickness), the formula's own
    np.testing.assert_allclose(seen, [40 / (1 + thick) for thick in (1.5, 2.0, 2.5, 2.5, 3.0)], atol=0.6)
    assert change(street(), "Fog", 1) > 15


@pytest.mark.parametrize("setting", ["CameraCrash", "FrameLost"])
def test_a_worse_severity_loses_more_cameras_and_those_too_that_a_milder_one_lost(setting: str) -> None:
    counts = np.zeros(6)
    for frame in range(60):
        lost = [
            {
                name
                for name, image in corrupted_frame(six(8, 8), setting, severity=severity, seed=frame_seed(0, str(frame))).items()
                if not image.any()
            }
            for severity in range(1, 6)
        ]
        assert all(milder <= worse for milder, worse in pairwise(lost))
        counts += [0, *map(len, lost)]
    drawn = 6 * (1 - (5 / 6) ** np.arange(6)) if setting == "CameraCrash" else np.arange(6.0)
    # 0.5 of six cameras: five standard deviations of the mean of 60 frames, at most (sqrt(6 / 4) / sqrt(60) = 0.16)
    np.testing.assert_allclose(counts / 60, drawn, atol=0.5)


@pytest.mark.parametrize("setting", ["LensObstacleCorruption", "WaterSplashCorruption"])
def test_the_front_cameras_lens_is_always_hit_and_one_to_five_others(setting: str) -> None:
    counts, images = [], six(90, 160)
    for frame in range(40):
        made = corrupted_frame(images, setting, severity=5, seed=frame_seed(0, str(frame)))
        hit = {name for name, image in images.items() if not np.array_equal(made[name], image)}
        assert "CAM_FRONT" in hit
        counts.append(len(hit))
    assert set(counts) == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("setting", sorted(set(CORRUPTIONS) - BLACK))
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_nothing_is_wiped_out_that_should_be_seen(setting: str, severity: int) -> None:
    image = street(180, 320)
    made = corrupted_frame({"CAM_FRONT": image}, setting, severity=severity, seed=2)["CAM_FRONT"].astype(float)
    if (setting, severity) == ("ColorQuant", 5):
        assert not made.any(), "5 - 5 bits remain"
        return
    blocks = [picture.reshape(18, 10, 32, 10, 3).mean((1, 3, 4)) for picture in (made, image.astype(float))]
    assert np.corrcoef(blocks[0].ravel(), blocks[1].ravel())[0, 1] > 0.25, "the street is still in it"
    assert made.std() > 4


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True, "3"])
def test_other_severities_are_refused(severity: object) -> None:
    for setting in ("Fog", "clean"):
        with pytest.raises(UsageError, match=f"severity .* of {setting}: expected 1 .mild. to 5"):
            corrupted_frame(six(), setting, severity=severity, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["fog", "Cloudy", "", "H265ABRCompression"])
def test_unknown_settings_are_refused_with_the_known_ones(setting: str) -> None:
    with pytest.raises(UsageError, match=r"unknown picture setting .* known: clean, NoImage, BitError, .*WaterSplashCorruption"):
        corrupted_frame(six(), setting, seed=0)
    with pytest.raises(UsageError, match="unknown picture setting"):
        implementation(setting)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(DataError, match="CAM_BACK: expected a uint8 RGB image"):
        corrupted_frame({"CAM_BACK": np.zeros((4, 4, 3), np.float32)}, "Fog", seed=0)  # type: ignore[dict-item]


def test_other_camera_names_are_drawn_among_themselves() -> None:
    images = {f"camera_{index}": street(8, 8) for index in range(2)}
    assert any(
        not image.any()
        for frame in range(5)
        for image in corrupted_frame(images, "CameraCrash", seed=frame_seed(0, str(frame))).values()
    )
    assert corrupted_frame({}, "CameraCrash", seed=0) == {}


def test_the_report_says_which_codec_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PyAV" in implementation("BitError")
    assert implementation("Fog") == "numpy, Pillow"
    monkeypatch.setattr(codecs, "available", lambda: False)
    for setting in ("BitError", "H256ABRCompression"):
        assert "stand-in: PyAV is not installed" in implementation(setting)
        changes = [change(street(180, 320), setting, severity) for severity in range(1, 6)]
        assert changes == sorted(changes), changes
        assert changes[4] > 1.15 * changes[0]
