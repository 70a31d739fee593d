"""What a run promises: cameras and their order, answer budgets, coordinates, tile; its files and its resume keep to it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import COLOURS, NO_TEACHERS, QUESTIONS, TinyRun, start_trainer

from drivekd.contract import CONTRACT_FILE, Contract, read_contract, write_contract
from drivekd.data.traces import FILE_NAME, overlapping, read_traces
from drivekd.distill.training import run_contract
from drivekd.distill.training.run_contract import answer_budgets, check_same_contract, with_data
from drivekd.distill.training.train import read_training_samples, train
from drivekd.errors import CheckpointError, ConfigError, DataError
from drivekd.export.source.source import load_source
from drivekd.export.trained import write_rounded_checkpoint
from drivekd.hf_checkpoint import load_processor
from drivekd.sample import CAMERAS, Sample

TWO = ("CAM_FRONT", "CAM_BACK")
PLAIN = (*NO_TEACHERS, "data.validation=null")


def record(
    cameras: tuple[str, ...], answer: str = "A. Red.", capability: str = "planning", *, named: bool = True
) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "<image>" * len(cameras) + QUESTIONS[capability]},
            {"role": "assistant", "content": answer},
        ],
        "images": [f"images/{CAMERAS.index(name)}.png" for name in cameras],
        "question_type": capability,
        **({"meta": {"cameras": list(cameras)}} if named else {}),
    }


def written(run: TinyRun, path: Path, *records: dict[str, Any]) -> str:
    """The override that trains on these records."""
    path.write_text(json.dumps(list(records)))
    return f"data.train=[{path}]"


def samples_of(run: TinyRun, *overrides: str) -> tuple[list[Sample], tuple[str, ...]]:
    found = read_training_samples(run.config(*PLAIN, f"data.image_root={run.folder}", *overrides))
    return found.labelled, found.cameras


def shown(sample: Sample) -> list[str]:
    """The cameras whose pictures a prompt has, in its order."""
    return [CAMERAS[int(path.stem)] for path in sample.images]


def test_pictures_of_two_orders_are_shown_in_one_and_said_once(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turned = TWO[::-1]
    override = written(tiny_run, tmp_path / "two.json", record(TWO), record(turned), record(TWO), record(turned[:1]))
    with caplog.at_level(logging.WARNING, logger="drivekd"):
        samples, cameras = samples_of(tiny_run, override)
    assert cameras == TWO
    assert [shown(sample) for sample in samples] == [list(TWO), list(TWO), list(TWO), ["CAM_BACK"]]
    assert [sample.cameras for sample in samples] == [TWO, TWO, TWO, ("CAM_BACK",)]
    (warning,) = caplog.messages
    assert (
        "record 2 has CAM_BACK, CAM_FRONT" in warning and "record 1): CAM_FRONT, CAM_BACK" in warning and "1 records" in warning
    )


def test_the_configuration_sets_the_order_and_knows_every_camera(tiny_run: TinyRun, tmp_path: Path) -> None:
    override = written(tiny_run, tmp_path / "two.json", record(TWO), record(TWO))
    samples, cameras = samples_of(tiny_run, override, "data.cameras=[CAM_BACK, CAM_FRONT]")
    assert (cameras, shown(samples[0])) == (TWO[::-1], list(TWO[::-1]))
    with pytest.raises(DataError, match="record 1: images: the camera CAM_BACK is none of CAM_FRONT"):
        samples_of(tiny_run, override, "data.cameras=[CAM_FRONT]")
    for wrong in ("[CAM_FRONT, CAM_FRONT]", "['front left']", "[3]"):
        with pytest.raises(ConfigError, match=r"data\.cameras"):
            tiny_run.config(f"data.cameras={wrong}")


def test_unnamed_pictures_are_named_place_by_place_on_request_alone(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    override = written(tiny_run, tmp_path / "unnamed.json", record(TWO, named=False))
    assert samples_of(tiny_run, override)[1] == ()
    samples, cameras = samples_of(tiny_run, override, "data.cameras=[roof, bumper]")
    assert samples[0].cameras == cameras == ("roof", "bumper")
    mixed = written(tiny_run, tmp_path / "mixed.json", record(TWO), record(TWO, named=False))
    with caplog.at_level(logging.WARNING, logger="drivekd"):
        assert samples_of(tiny_run, mixed)[0][1].cameras == TWO
    assert "record 2 names no camera, others do" in caplog.text


def test_a_model_trained_in_another_order_is_refused_by_name(tiny_run: TinyRun, tmp_path: Path) -> None:
    trainer = start_trainer(tiny_run, *PLAIN)
    for name, cameras in (("student", TWO), ("teacher", TWO[::-1])):
        (tmp_path / name).mkdir()
        write_contract(tmp_path / name, replace(trainer.contract, cameras=cameras))
    override = written(tiny_run, tmp_path / "two.json", record(TWO[::-1]))
    teacher = f"teachers={{planning: {tmp_path / 'teacher'}}}"
    with pytest.raises(ConfigError, match=r"teachers\.planning \(.*has the cameras CAM_BACK, CAM_FRONT, student\.checkpoint"):
        samples_of(tiny_run, override, f"student.checkpoint={tmp_path / 'student'}", teacher)
    with pytest.raises(ConfigError, match=r"student\.checkpoint .*, data\.cameras has CAM_BACK, CAM_FRONT"):
        samples_of(tiny_run, override, f"student.checkpoint={tmp_path / 'student'}", "data.cameras=[CAM_BACK, CAM_FRONT]")
    samples, cameras = samples_of(tiny_run, override, f"student.checkpoint={tmp_path / 'student'}")
    assert (cameras, shown(samples[0])) == (TWO, list(TWO))  # it keeps the order that it learnt
    write_contract(tmp_path / "teacher", replace(trainer.contract, cameras=CAMERAS))
    assert samples_of(tiny_run, override, teacher)[1] == TWO, "no camera that this run does not show: a car would wait for it"


def test_budgets_follow_the_longest_answer_of_a_capability() -> None:
    assert answer_budgets({"perception": 40, "reasoning": 1, "planning": 120}, room=1000) == {
        "perception": 56,  # 50 in whole eights
        "reasoning": 16,
        "planning": 152,  # 150
    }
    assert answer_budgets({"perception": 40}, room=1000) == {"perception": 56, "reasoning": 56, "planning": 56}
    assert answer_budgets({}, room=1000) == {"perception": 64, "reasoning": 64, "planning": 64}
    assert answer_budgets({"planning": 120}, room=130)["planning"] == 130
    assert answer_budgets({"planning": 120}, room=-5)["planning"] == 1


def test_the_contract_states_what_the_run_knows(tiny_run: TinyRun, tmp_path: Path) -> None:
    tag = "<c1,CAM_FRONT,0.5,0.5>"
    override = written(
        tiny_run,
        tmp_path / "records.json",
        record(TWO, " ".join(COLOURS * 9)),
        record(TWO, f"Red {tag}", "perception"),
    )
    root = f"data.image_root={tiny_run.folder}"
    trainer = start_trainer(tiny_run, *PLAIN, root, override, "prompts.max_new_tokens={perception: 96}", "prompts.note=a toy")
    contract, prompts = trainer.contract, trainer.collate.processor.prompts
    longest = len(prompts.answer(" ".join(COLOURS * 9)))
    assert contract.max_new_tokens["planning"] >= 1.25 * longest > contract.max_new_tokens["planning"] - 8
    assert contract.max_new_tokens["perception"] == 96
    assert (contract.cameras, contract.coordinates, contract.note) == (TWO, "normalized", "a toy")
    assert contract.tile_px == (56, 56)
    assert set(start_trainer(tiny_run, *PLAIN, "prompts.max_new_tokens=7").contract.max_new_tokens.values()) == {7}
    with pytest.raises(ConfigError, match=r"prompts\.max_new_tokens"):
        tiny_run.config("prompts.max_new_tokens=0")


def test_coordinates_are_those_that_the_student_learns(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Readers turn pixels into parts of the picture, whichever of both a file writes."""
    assert start_trainer(tiny_run, *PLAIN).contract.coordinates == "none"
    files = [tmp_path / "parts.json", tmp_path / "pixels.json"]
    written(tiny_run, files[0], record(TWO, "Red <c1,CAM_FRONT,0.5,0.5>"))
    written(tiny_run, files[1], record(TWO, "Red <c1,CAM_FRONT,800.0,450.0>"))
    root = f"data.image_root={tiny_run.folder}"
    trainer = start_trainer(tiny_run, *PLAIN, root, f"data.train=[{files[0]}, {files[1]}]")
    assert trainer.contract.coordinates == "normalized"
    one, other = trainer.samples.labelled
    pixel = replace(other, answer="Red <c1,CAM_FRONT,800.0,450.0>")
    assert start_trainer(tiny_run, *PLAIN, labelled=[pixel]).contract.coordinates == "pixel"
    with pytest.raises(DataError, match=r"parts\.json writes tags normalized, .*pixels\.json writes them pixel"):
        start_trainer(tiny_run, *PLAIN, labelled=[one, pixel])


def test_a_resumed_run_keeps_its_contract(tiny_run: TinyRun, tmp_path: Path) -> None:
    contract = with_data(
        start_trainer(tiny_run, *PLAIN).contract, {"data.train[0]": "ab", "student.checkpoint/config.json": "cd"}
    )
    assert contract.data == {"train[0]": "ab"}
    with pytest.raises(CheckpointError, match=rf"{CONTRACT_FILE} is missing"):
        check_same_contract(tmp_path, contract)
    write_contract(tmp_path, contract)
    check_same_contract(tmp_path, replace(contract, data={}))
    with pytest.raises(CheckpointError, match=r"--resume: .*says otherwise than this run, cameras: none, now CAM_FRONT\. Start"):
        check_same_contract(tmp_path, replace(contract, cameras=("CAM_FRONT",)))


@pytest.mark.e2e
def test_resume_refuses_what_would_be_another_contract(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.config(*PLAIN, "training.steps=1", "training.checkpoint_every_steps=1")
    train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    monkeypatch.setattr(run_contract, "LEAST", 32)  # as another drivekd might
    with pytest.raises(CheckpointError, match=r"--resume: .*step-1/contract\.json says otherwise.*, max_new_tokens: "):
        train(config, tmp_path / "run", resume=True)


def contract_in(folder: Path) -> Contract:
    found = read_contract(folder)
    assert found is not None, folder
    return found


@pytest.mark.e2e
@pytest.mark.parametrize("lora", [False, True])
def test_a_qwen_students_tile_reaches_all_that_is_written(tiny_qwen_run: TinyRun, tmp_path: Path, lora: bool) -> None:
    """The source's camera.json says 84 x 56; the run trains at 112 x 84."""
    more = ("student.lora={rank: 2}", "student.train=[language_model]") if lora else ()
    config = tiny_qwen_run.config(
        *NO_TEACHERS,
        *("training.steps=1", "training.checkpoint_every_steps=1", "training.validate_every_steps=1"),
        *("data.camera_size_px=[112, 84]", *more),
    )
    out = tmp_path / "run"
    final = train(config, out).final
    places = [final, out / "best", *([final / "adapter"] if lora else [out / "checkpoints" / "step-1"])]
    assert all(contract_in(place).tile_px == (112, 84) for place in [*places, out / "checkpoints" / "step-1"])
    assert set(contract_in(final).data) == {"train[0]", "validation"}
    traces = [read_traces(place / FILE_NAME) for place in [*places, out / "checkpoints" / "step-1"]]
    samples = read_training_samples(config).labelled
    assert all(len(found.contents) == 6 and overlapping(found, samples) == [True] * len(samples) for found in traces)
    for place in places:
        if place.name != "adapter":
            assert load_processor(place).images.tile_px == (112, 84)
            assert json.loads((place / "camera.json").read_text()) == {"width_px": 112, "height_px": 84}
    if lora:
        assert_an_adapter_keeps_its_tile(final / "adapter", tmp_path / "rounded")


def assert_an_adapter_keeps_its_tile(adapter: Path, folder: Path) -> None:
    """Its base says 84 x 56: for the export, and for the rounded model that an export leaves."""
    source = load_source(adapter, None)
    assert source.processor.images.tile_px == (112, 84)
    assert source.contract == contract_in(adapter)
    write_rounded_checkpoint(folder, source, source.model.get_input_embeddings().weight.detach().clone(), {})
    assert load_processor(folder).images.tile_px == (112, 84)
    assert contract_in(folder) == source.contract
    assert (folder / FILE_NAME).is_file()
