"""What training knew arrives in the car: a tiny student learns two long answers by heart, and checkpoint and bundle give them.

The records show their cameras in two orders; the student sees tiles of 112 x 84 px where its checkpoint says 84 x 56.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_bundle import write_manifest
from tiny_run import NO_TEACHERS, TinyRun

from drivekd.chat import PromptEncoder
from drivekd.contract import CONTRACT_FILE, Contract, read_contract
from drivekd.data.readers import read_samples
from drivekd.data.traces import FILE_NAME
from drivekd.distill.training.train import train
from drivekd.errors import BundleError, CheckpointError, DataError, UsageError
from drivekd.evaluate import evaluate
from drivekd.evaluate.answering import AnswererSettings, open_answerer
from drivekd.export import bundle_from_checkpoint
from drivekd.hf_checkpoint import load_processor
from drivekd.images import load_image
from drivekd.runtime import load_bundle, read_bundle

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]

FRONT, BACK = "CAM_FRONT", "CAM_BACK"
LONGEST = {"perception": 120, "planning": 40}  # tokens, the end of turn counted
SIZE_PX = (112, 84)


@dataclasses.dataclass(frozen=True)
class Learnt:
    """final: of the run. records: what it learnt. bundle: exported from final."""

    final: Path
    records: Path
    bundle: Path

    @property
    def contract(self) -> Contract:
        found = read_contract(self.final)
        assert found is not None
        return found


def long_answer(prompts: PromptEncoder, tokens: int) -> str:
    """Letters and digits without a pattern; the choice that is scored comes last."""
    draw, text, ending = random.Random(tokens), "", " Final: B."
    while len(prompts.answer(text + ending)) < tokens:
        text += draw.choice([letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" if letter != text[-1:]])
    return text + ending


def record(capability: str, question: str, answer: str, cameras: list[str]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"<image><image>{question} Options: A. Red. B. Green. C. Blue."},
            {"role": "assistant", "content": answer},
        ],
        "images": [f"images/{[FRONT, BACK].index(name)}.png" for name in cameras],
        "question_type": capability,
        "meta": {"kind": "choice", "cameras": cameras},
    }


@pytest.fixture(scope="module")
def learnt(tiny_qwen_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    folder = tmp_path_factory.mktemp("learnt")
    prompts = load_processor(tiny_qwen_run.student).prompts
    records = [
        record("perception", "What colour is it?", long_answer(prompts, LONGEST["perception"]), [FRONT, BACK]),
        record("planning", "Why?", long_answer(prompts, LONGEST["planning"]), [BACK, FRONT]),
    ]
    (folder / "records.json").write_text(json.dumps(records))
    shutil.copytree(tiny_qwen_run.folder / "images", folder / "images")
    config = tiny_qwen_run.config(
        *NO_TEACHERS,
        *(f"data.train=[{folder / 'records.json'}]", "data.validation=null", f"data.camera_size_px={list(SIZE_PX)}"),
        *("training.steps=90", "training.batch_size=2", "training.micro_batch_size=2", "training.checkpoint_every_steps=90"),
        *("optimizer.learning_rate=1.0e-2", "optimizer.schedule=cosine"),
    )
    final = train(config, folder / "run").final
    bundle_from_checkpoint(final, folder / "bundle")
    return Learnt(final, folder / "records.json", folder / "bundle")


def test_long_answers_learnt_by_heart_are_right_on_checkpoint_and_bundle(learnt: Learnt) -> None:
    """With 24 tokens, or with 64, neither would come to its letter."""
    samples = read_samples(learnt.records)
    for model in (learnt.final, learnt.bundle):
        answerer = open_answerer(model, AnswererSettings(threads=1))
        given = answerer.answers(samples)
        assert [one.text for one in given] == [sample.answer for sample in samples]
        assert [one.finish_reason for one in given] == ["stop", "stop"]
        assert evaluate(answerer, samples).scores[0].accuracy == 1.0
        short = open_answerer(model, AnswererSettings(threads=1, max_new_tokens=64))
        assert evaluate(short, samples).scores[0].accuracy == 0.5


def test_the_manifest_says_what_the_contract_says(learnt: Learnt) -> None:
    contract, manifest = learnt.contract, read_bundle(learnt.bundle).manifest
    assert contract.max_new_tokens["perception"] == 152 and contract.max_new_tokens["planning"] == 56
    assert manifest.generation.max_new_tokens == contract.max_new_tokens
    assert manifest.cameras == contract.cameras == (FRONT, BACK)
    assert manifest.images.tile_px == contract.tile_px == SIZE_PX
    assert (manifest.prompts, manifest.variables, manifest.note) == (contract.prompts, contract.variables, contract.note)
    assert (manifest.coordinates, manifest.preprocessing, manifest.data) == ("none", contract.preprocessing, contract.data)
    assert set(manifest.data) == {"train[0]"}
    assert FILE_NAME in manifest.files
    assert (learnt.bundle / FILE_NAME).read_bytes() == (learnt.final / FILE_NAME).read_bytes()


def test_pictures_come_into_the_order_of_training_by_name(learnt: Learnt) -> None:
    """Given turned, by records or by a caller: the same answer; under each other's names: another prompt."""
    front, back = (load_image(learnt.records.parent / "images" / f"{i}.png") for i in (0, 1))
    with load_bundle(learnt.bundle, threads=1) as session:
        assert session.cameras == (FRONT, BACK)
        asked = [session.model.tiles(images) for images in ({FRONT: front, BACK: back}, {BACK: back, FRONT: front})]
        assert [list(tiles) for tiles in asked] == [[FRONT, BACK]] * 2
        texts = [session.answer(images, capabilities=["planning"])["planning"] for images in asked]
        assert texts[0].text == texts[1].text
        with pytest.raises(UsageError, match="camera 'CAM_FRONT_LEFT' is unknown to this bundle; it has: CAM_FRONT, CAM_BACK"):
            session.answer({"CAM_FRONT_LEFT": front})


def test_each_answer_of_a_frame_has_its_own_budget(learnt: Learnt) -> None:
    """One batch: what planning may not say any more, perception still may."""
    front, back = (load_image(learnt.records.parent / "images" / f"{i}.png") for i in (0, 1))
    wanted = {"perception": 9, "planning": 3}
    with load_bundle(learnt.bundle, threads=1) as session:
        answers = session.answer({FRONT: front, BACK: back}, capabilities=list(wanted), max_new_tokens=wanted)
        for name, answer in answers.items():
            assert answer.tokens == wanted[name] or answer.finish_reason == "stop"
        assert any(answer.finish_reason == "length" for answer in answers.values())
        with pytest.raises(UsageError, match="capability 'plannin' is unknown"):
            session.answer({FRONT: front, BACK: back}, max_new_tokens={"plannin": 3})


def test_the_length_of_each_answer_is_judged_with_its_own_question(learnt: Learnt) -> None:
    images = {name: np.zeros((8, 8, 3), np.uint8) for name in (FRONT, BACK)}
    with load_bundle(learnt.bundle, threads=1) as session:
        prefix, positions = session.model.prefix.num_tokens(2), session.manifest.model.max_positions
        lengths = {name: len(session.model.prompts.suffix(text)) for name, text in session.model.questions().items()}
        rooms = {name: positions - prefix - length for name, length in lengths.items()}
        assert len(set(rooms.values())) > 1
        answers = session.answer(images, max_new_tokens=rooms, deadline_ms=0)
        assert {answer.finish_reason for answer in answers.values()} == {"deadline"}
        with pytest.raises(UsageError, match=rf"make {positions + max(rooms.values()) - min(rooms.values())} tokens"):
            session.answer(images, max_new_tokens=max(rooms.values()), deadline_ms=0)


def test_a_damaged_contract_stops_eval_and_export(learnt: Learnt, tmp_path: Path) -> None:
    damaged = tmp_path / "final"
    shutil.copytree(learnt.final, damaged)
    (damaged / "camera.json").write_text('{"width_px": 84, "height_px": 56}')
    message = rf"{CONTRACT_FILE} says a tile of 112x84 px, .*camera\.json says 84x56 px"
    with pytest.raises(CheckpointError, match=message):
        open_answerer(damaged)
    with pytest.raises(CheckpointError, match=message):
        bundle_from_checkpoint(damaged, tmp_path / "bundle")
    shutil.copyfile(learnt.final / "camera.json", damaged / "camera.json")
    (damaged / "prompts.json").write_text('{"prompts": {"perception": "What else?"}}')
    with pytest.raises(CheckpointError, match=rf"prompts\.json says prompts .*, .*{CONTRACT_FILE} says"):
        bundle_from_checkpoint(damaged, tmp_path / "bundle")


def test_a_bundle_of_another_pixel_path_is_refused(learnt: Learnt, tmp_path: Path) -> None:
    changed = shutil.copytree(learnt.bundle, tmp_path / "bundle")
    manifest = json.loads((changed / "manifest.json").read_text())
    data = (json.dumps(manifest | {"preprocessing": manifest["preprocessing"] + 1}) + "\n").encode()
    write_manifest(changed, data)
    with pytest.raises(BundleError, match="makes pixels by version"):
        load_bundle(changed)


def test_unnamed_pictures_of_another_number_are_refused_by_record(learnt: Learnt, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "one.png")
    sample = dataclasses.replace(read_samples(learnt.records)[0], images=(tmp_path / "one.png",), cameras=())
    for model in (learnt.final, learnt.bundle):
        with pytest.raises(DataError, match="record 1: images: cannot tell the cameras of 1 images"):
            open_answerer(model, AnswererSettings(threads=1)).answers([sample])
