"""A camera in several tiles: packs, caches, final/ and teachers of a run keep to the grid that the configuration names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import TinyRun, frame_samples, load_pair, start_trainer, stepped
from torch import Tensor

from drivekd.data.packs import frame_packs, single_packs
from drivekd.distill.training.train import train
from drivekd.distill.training.trainer import Trainer
from drivekd.errors import ConfigError, DataError
from drivekd.hf_checkpoint import Checkpoint, load_processor, stated_tiles
from drivekd.images import load_image
from drivekd.models import encode_images, load_model

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

TILES = "2x1+thumbnail"
RTOL = 1e-5  # of packs, promised in docs/method.md, "What is exact"
FROZEN = "student.train=[language_model]"


@pytest.fixture
def stating(tmp_path: Path) -> Callable[[Path, str], Path]:
    """stating(checkpoint, tiles): a copy that says what it was trained with."""

    def copy(checkpoint: Path, tiles: str) -> Path:
        target = tmp_path / f"{checkpoint.name}-{tiles}"
        shutil.copytree(checkpoint, target)
        (target / "camera.json").write_text(json.dumps({"tiles": tiles}), encoding="utf-8")
        return target

    return copy


def test_features_are_those_of_the_tiles_one_by_one(tiny_run: TinyRun) -> None:
    model, processor = load_model(tiny_run.student).eval(), load_processor(tiny_run.student, tiles=TILES)
    paths = sorted((tiny_run.folder / "images").iterdir())[:2]
    pixels = torch.from_numpy(np.stack([processor.normalize(processor.resize(load_image(path))) for path in paths]))
    assert pixels.shape == (2, 3, 3, 56, 56)
    with torch.no_grad():
        found = encode_images(model, pixels)
        expected = torch.stack([torch.cat([encode_images(model, tile[None])[0] for tile in image]) for image in pixels])
    assert found.shape == (2, processor.chat.tokens_per_image, 32) == (2, 12, 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # other kernels for another batch shape
    assert (found[0, :4] - found[0, 4:8]).abs().max() > 1e-2, "the halves of a picture must look different"


@pytest.mark.parametrize("mixing", ["routed", "released"])
def test_packs_give_the_step_of_single_questions(tiny_run: TinyRun, mixing: str) -> None:
    pair = load_pair(tiny_run, f"data.tiles={TILES}", f"signals.mixing={mixing}")
    samples = frame_samples(tiny_run, (4, 3))
    packs = frame_packs(samples, pair.collate.num_tokens, 4096, seed=0)
    assert [len(pack) for pack in packs] == [4, 3]
    batch = pair.collate(packs)
    assert batch.vision_mask.sum(1).tolist() == [12, 24], "three tiles of four tokens a picture"
    expected, found = pair.gradients([single_packs(samples)]), pair.gradients([packs])
    for name, loss in expected[0].items():
        assert loss > 0
        assert found[0][name] == pytest.approx(loss, rel=RTOL), name
        assert float((found[1][name] - expected[1][name]).norm()) <= RTOL * float(expected[1][name].norm()), name


def test_another_cut_of_the_same_size_is_another_step(tiny_run: TinyRun) -> None:
    """The tests above would pass on a model that cannot tell its tiles apart."""
    samples, found = frame_samples(tiny_run, (4, 3)), []
    for tiles in ("2x1", "1x2"):
        pair = load_pair(tiny_run, f"data.tiles={tiles}")
        found.append(pair.losses(pair.collate(single_packs(samples)))["ce"])
    assert abs(found[0] - found[1]) > 1e-4


def two_steps(trainer: Trainer) -> tuple[list[dict[str, float]], Tensor]:
    records, directions = zip(*(stepped(trainer) for _ in range(2)), strict=True)
    trainer.caches.close()
    return [record["loss"] for record in records], torch.stack(directions)


def test_a_cache_of_other_tiles_is_not_read(tiny_run: TinyRun, tmp_path: Path) -> None:
    """One folder for two grids of as many tiles, whose prompts are the same: each gives the steps of no cache, to the bit."""
    caching = f"cache.directory={tmp_path / 'cache'}"
    expected = {tiles: two_steps(start_trainer(tiny_run, FROZEN, f"data.tiles={tiles}")) for tiles in ("2x1", "1x2")}
    assert expected["2x1"][0] != expected["1x2"][0]
    for tiles in ("2x1", "1x2", "2x1"):  # filled, beside the first, and read
        losses, directions = two_steps(start_trainer(tiny_run, FROZEN, f"data.tiles={tiles}", caching))
        assert losses == expected[tiles][0]
        assert torch.equal(directions, expected[tiles][1])


def test_the_grid_reaches_final_and_is_the_default_from_there(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("training.steps=1", "training.checkpoint_every_steps=1", "training.validate_every_steps=1")
    train(tiny_run.config(f"data.tiles={TILES}", *settings), out)
    for folder in ("final", "best"):
        written = Checkpoint.open(out / folder)
        assert stated_tiles(written) == TILES
        assert load_processor(written).chat.tokens_per_image == 12
    again = start_trainer(tiny_run, f"student.checkpoint={out / 'final'}")
    assert str(again.collate.processor.images.tiling) == TILES
    assert again.teachers is not None, "teachers that state nothing are given the student's grid"
    over = start_trainer(tiny_run, f"student.checkpoint={out / 'final'}", "data.tiles=1x1")
    assert over.collate.processor.images.pixel_shape == (3, 56, 56)


def test_one_tile_is_stated_too(tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run.config("training.steps=1"), tmp_path / "run")
    assert stated_tiles(Checkpoint.open(tmp_path / "run" / "final")) == "1x1"


@pytest.mark.parametrize(("students", "teachers"), [("2x1", "1x1"), ("1x1", "2x1"), ("2x1+thumbnail", "2x1"), (None, "2x1")])
def test_a_teacher_of_other_tiles_is_refused_naming_both(
    tiny_run: TinyRun, stating: Callable[[Path, str], Path], students: str | None, teachers: str
) -> None:
    teacher = stating(tiny_run.teacher, teachers)
    overrides = [f"teachers={{planning: {teacher}}}", *([f"data.tiles={students}"] if students else [])]
    message = rf"teachers\.planning = .*trained with tiles {teachers.replace('+', '.')} a camera, the student sees "
    with pytest.raises(ConfigError, match=message + (students or "1x1").replace("+", ".")):
        start_trainer(tiny_run, *overrides)


def test_a_teacher_of_the_same_tiles_teaches(tiny_run: TinyRun, stating: Callable[[Path, str], Path]) -> None:
    trainer = start_trainer(tiny_run, f"teachers={{planning: {stating(tiny_run.teacher, '2x1')}}}", "data.tiles=2x1")
    record, _ = stepped(trainer)
    assert record["loss"]["planning"] > 0


def test_more_tiles_than_the_student_has_positions_for_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Before the first step: neither a bundle nor an evaluation could ask that question."""
    student = tmp_path / "student"
    shutil.copytree(tiny_run.student, student)
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 96
    (student / "config.json").write_text(json.dumps(config), encoding="utf-8")
    start_trainer(tiny_run, f"student.checkpoint={student}", "data.tiles=2x1")
    message = (
        r"train\.json, record \d+: 2 pictures of 48 tokens, question and answer make 1\d\d tokens; the student has 96 positions"
    )
    with pytest.raises(DataError, match=message + r".*data\.tiles"):
        start_trainer(tiny_run, f"student.checkpoint={student}", "data.tiles=4x3")


def test_a_dry_run_counts_every_tile(tiny_run: TinyRun) -> None:
    one, three = (start_trainer(tiny_run, f"data.tiles={tiles}") for tiles in ("1x1", TILES))
    sample = frame_samples(tiny_run, (1,))[0]
    assert three.collate.num_tokens(sample)[0] - one.collate.num_tokens(sample)[0] == 2 * 4
    assert three.collate.pictures_kept == one.collate.pictures_kept // 3
