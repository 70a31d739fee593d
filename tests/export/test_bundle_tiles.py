"""A checkpoint whose cameras are several tiles: its bundle answers as it does, says so, and reads a changed camera anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drivekd.answered import Given
from drivekd.errors import BundleError, ExportError
from drivekd.evaluate.answering import AnswererSettings, Pictures, open_answerer
from drivekd.export import bundle_from_checkpoint
from drivekd.export.edgellm import write_edgellm_kit
from drivekd.export.parity.bisect import bisect_bundle
from drivekd.export.settings import plan_from_options
from drivekd.export.trt.profiles import limits_of, vision_profiles
from drivekd.images import RGBImage, TiledSettings
from drivekd.runtime import Session, load_bundle, read_bundle
from drivekd.runtime.bench import bench_bundle
from drivekd.runtime.bundle.graph_contract import check_names
from drivekd.runtime.parity.golden import GOLDEN_FILE, load_golden
from drivekd.runtime.resilience.worker import WorkerSession
from drivekd.sample import Sample

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("module_on_one_thread")]

TILES = "2x1+thumbnail"
NUM_TILES, SIDE_PX, TOKENS = 3, 56, 4


@pytest.fixture(scope="module")
def tiled_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / "camera.json").write_text(json.dumps({"tiles": TILES}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiled_bundle(tiled_checkpoint: Path) -> Path:
    bundle = tiled_checkpoint.parent / "bundle"
    assert bundle_from_checkpoint(tiled_checkpoint, bundle).parity.passed
    return bundle


@pytest.fixture(scope="module")
def tiled_session(tiled_bundle: Path) -> Iterator[Session]:
    with load_bundle(tiled_bundle, threads=1) as session:
        yield session


def picture(seed: int, height: int = 60, width: int = 107) -> RGBImage:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Twelve questions about three frames of one or two cameras, interleaved."""
    for number, camera in enumerate(("CAM_FRONT", "CAM_BACK")):
        (tmp_path / camera).mkdir()
        for index in range(3):
            Image.fromarray(picture(10 * number + index)).save(tmp_path / camera / f"{index}.png")
    shown = [tuple(tmp_path / name / f"{i % 3}.png" for name in ("CAM_FRONT", "CAM_BACK")[: 1 + i % 2]) for i in range(12)]
    return [Sample(f"f, record {i}", "planning", f"What at {i} m/s?", "Stop.", shown[i]) for i in range(12)]


def test_answers_are_the_checkpoints(tiled_checkpoint: Path, tiled_bundle: Path, checkpoint: Path, samples: list[Sample]) -> None:
    settings = AnswererSettings(max_new_tokens=4)
    answerer, expected = open_answerer(tiled_bundle, settings), open_answerer(tiled_checkpoint, settings)
    clean = texts(answerer.answers(samples))
    assert clean == texts(expected.answers(samples))
    assert len(set(clean)) > 3, "the random model must tell prompts apart for this test to mean anything"
    black = texts(answerer.answers(samples, pictures=Pictures("NoImage")))
    assert black == texts(expected.answers(samples, pictures=Pictures("NoImage")))
    assert black != clean
    assert texts(open_answerer(checkpoint, settings).answers(samples)) != clean, "one tile a camera is another view"


def texts(answers: list[Given]) -> list[str]:
    return [given.text for given in answers]


def test_manifest_graph_and_golden_run_say_the_grid(tiled_bundle: Path, bundle: Path) -> None:
    read = read_bundle(tiled_bundle)
    manifest, plain = read.manifest, read_bundle(bundle).manifest
    assert manifest.images == TiledSettings(SIDE_PX, tiles=TILES)
    assert manifest.chat.tokens_per_image == NUM_TILES * TOKENS
    vision = manifest.graphs["vision"]
    assert vision.inputs[0].dims == ("images", NUM_TILES, 3, SIDE_PX, SIDE_PX)
    assert vision.outputs[0].dims[:2] == ("images", NUM_TILES * TOKENS)
    golden = load_golden(read.files[GOLDEN_FILE], str(tiled_bundle))
    assert golden["images"].shape == (1, NUM_TILES * SIDE_PX, SIDE_PX, 3)
    assert golden["image_embeds"].shape[:2] == (1, NUM_TILES * TOKENS)
    ours, theirs = json.loads(manifest.to_bytes()), json.loads(plain.to_bytes())
    assert ours["images"] == theirs["images"] | {"tiles": TILES}, "one tile a camera is written as before there were grids"


def test_an_engine_is_built_for_one_camera_and_all_of_its_tiles(tiled_bundle: Path, bundle: Path) -> None:
    manifest = read_bundle(tiled_bundle).manifest
    limits = limits_of(manifest)
    (profile,) = vision_profiles(manifest.graphs["vision"], limits)
    least, best, most = profile.shapes["pixel_values"]
    assert least == best == (1, NUM_TILES, 3, SIDE_PX, SIDE_PX)
    assert most == (limits.images, NUM_TILES, 3, SIDE_PX, SIDE_PX)
    plain = limits_of(read_bundle(bundle).manifest)
    assert limits.prompt - plain.prompt >= limits.images * (NUM_TILES - 1) * TOKENS - 64  # both are rounded up to 64


def test_a_changed_camera_is_read_anew_with_all_of_its_tiles(tiled_session: Session) -> None:
    still = {"a": picture(0), "b": picture(1)}
    tiled_session.model.prefix.forget()
    first = tiled_session.answer(still, max_new_tokens=3)
    assert tiled_session.counts["images_encoded"] == 2
    again = tiled_session.answer(still, max_new_tokens=3)
    assert tiled_session.counts["images_encoded"] == tiled_session.counts["tokens_prefilled"] == 0
    assert [answer.text for answer in again.values()] == [answer.text for answer in first.values()]
    changed = {"a": still["a"], "b": still["b"].copy()}
    changed["b"][:, 80:] = 255 - changed["b"][:, 80:]  # in the right tile and in the thumbnail
    tiled_session.answer(changed, max_new_tokens=3)
    assert tiled_session.counts["images_encoded"] == 1
    assert tiled_session.counts["tokens_prefilled"] >= NUM_TILES * TOKENS
    kept = tiled_session.model.prefix.image_embeds(list(tiled_session.model.tiles(changed).values()))
    tiled_session.model.prefix.forget()
    assert np.array_equal(kept, tiled_session.model.prefix.image_embeds(list(tiled_session.model.tiles(changed).values())))


def test_a_worker_and_a_bench_show_it_pictures(tiled_bundle: Path, tiled_session: Session) -> None:
    """Both make pictures of their own before the first frame."""
    still = {"a": picture(0)}
    expected = tiled_session.answer(still, max_new_tokens=3)
    with WorkerSession(tiled_bundle, threads=1, gate=False) as worker:
        found = worker.answer(still, max_new_tokens=3)
    assert {name: answer.text for name, answer in found.items()} == {name: answer.text for name, answer in expected.items()}
    report = bench_bundle(tiled_bundle, frames=2, warmup=0, images=2, changed=1, max_new_tokens=3, threads=1)
    assert report.counts["images_encoded"] >= 1
    assert report.prompt_tokens > 2 * NUM_TILES * TOKENS


def test_what_is_kept_of_a_camera_are_its_tiles_in_uint8(tiled_session: Session) -> None:
    tiles = tiled_session.model.tiles({"a": picture(0), "b": picture(1, 90, 70)})
    assert {name: found.shape for name, found in tiles.items()} == dict.fromkeys("ab", (NUM_TILES * SIDE_PX, SIDE_PX, 3))
    assert all(found.dtype == np.uint8 for found in tiles.values())


@pytest.mark.parametrize("precision", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "int4"))])
def test_other_precisions_calibrate_and_bisect(
    tiled_checkpoint: Path, tmp_path: Path, samples: list[Sample], precision: str
) -> None:
    """int8 with int8 inputs, whose ranges are those of whole grids; int4 with weights rounded on them."""
    out, records = tmp_path / "bundle", [record(sample) for sample in samples]
    (tmp_path / "records.json").write_text(json.dumps(records), encoding="utf-8")
    overrides = [] if precision == "fp16" else [f"calibration={tmp_path / 'records.json'}", "calibration_samples=4"]
    assert bundle_from_checkpoint(tiled_checkpoint, out, plan=plan_from_options(precision, overrides)).parity.passed
    rows = [row for row in bisect_bundle(out, threads=1).rows if row.graph == "vision"]
    assert len(rows) == 3
    assert {row.verdict for row in rows} == {"ok"}


def record(sample: Sample) -> dict[str, Any]:
    question = {"role": "user", "content": "<image>" * len(sample.images) + sample.question}
    answer = {"role": "assistant", "content": sample.answer}
    return {"messages": [question, answer], "images": list(map(str, sample.images)), "question_type": sample.capability}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: replace(images, tiles="2by1"), r"images\.tiles: expected columns x rows"),
        (lambda images: replace(images, tiles="5x4"), r"images\.tiles: 5x4 has 20 tiles"),
        (lambda images: replace(images, tiles="3x1+thumbnail"), r"pixel_values is \['images', 3, .*want 4"),
        (lambda images: replace(images, tiles="5x1"), r"12 tokens an image; its 5 tiles"),
    ],
)
def test_a_manifest_of_another_grid_is_refused(tiled_bundle: Path, change: Callable[[Any], Any], words: str) -> None:
    manifest = read_bundle(tiled_bundle).manifest
    with pytest.raises(BundleError, match=words):
        check_names(replace(manifest, images=change(manifest.images)), "bundle")


def test_edgellm_is_not_asked_for_what_it_does_otherwise(tiled_bundle: Path, tiled_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"each camera is 2x1\+thumbnail tiles.*a kit is written for one tile a camera"):
        write_edgellm_kit(tiled_bundle, tiled_checkpoint, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()
