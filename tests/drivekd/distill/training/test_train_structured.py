"""Training on both forms: which records are learnt as JSON, and a short run on Drive-KD's and DriveLM's ways of writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import NO_TEACHERS, TinyRun

from drivekd.config import load_config
from drivekd.contract import read_contract
from drivekd.data.readers import read_samples
from drivekd.data.writers.convert import convert_file
from drivekd.distill.training.train import read_training_samples, train
from drivekd.errors import ConfigError, DataError
from drivekd.hf_checkpoint import load_processor
from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.sample import CAPABILITIES, Sample

INSTRUCTION = "\nAnswer as JSON."
TAG = "<c1,CAM_FRONT,0.5,0.5>"
QUESTIONS = {
    "perception": (f"What is the moving status of object {TAG}?", "Final: Turn left. Object: white van"),
    "reasoning": ("What object should the ego vehicle notice first?", f"First: {TAG}, white van; State: braking; Ego: slow down"),
    "planning": ("What actions could the ego vehicle take? Why?", "Action: slow down\nReason: the van brakes\nFinal: slow down"),
}
DRIVELM = {
    "perception": (
        "What are the important objects in the current scene?",
        "There is a white van to the front of the ego vehicle. The IDs of these objects are <c1,CAM_FRONT,800.0,450.0>.",
    ),
    "prediction": ("What is the future state of <c1,CAM_FRONT,800.0,450.0>?", "Turn left."),
    "planning": ("What is the target action of the ego vehicle?", "Brake gently to a stop."),
    "behavior": ("Predict the behavior of the ego vehicle.", "It goes straight."),
}


@pytest.fixture
def drivekd_file(tiny_run: TinyRun) -> Path:
    def record(capability: str, question: str, answer: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}]
        meta = {"cameras": ["CAM_FRONT"]}
        return {"messages": messages, "images": ["images/0.png"], "question_type": capability, "meta": meta}

    records = [record(capability, *texts) for capability, texts in QUESTIONS.items()]
    records += [record("perception", "Is it wet?", "Yes.")]  # holds nothing for the schema
    path = tiny_run.folder / "parts.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def drivelm_file(tiny_run: TinyRun) -> Path:
    qa = {topic: [{"Q": question, "A": answer}] for topic, (question, answer) in DRIVELM.items()}
    cameras = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
    frame = {"QA": qa, "image_paths": {camera: f"images/{number}.png" for number, camera in enumerate(cameras)}}
    source = tiny_run.folder / "sentences.json"
    source.write_text(json.dumps({"scene-1": {"key_frames": {"frame-1": frame}}}), encoding="utf-8")
    convert_file(source, tiny_run.folder / "converted.json")
    return tiny_run.folder / "converted.json"


def taught(tiny_run: TinyRun, path: Path, mode: str) -> list[Sample]:
    return read_training_samples(
        tiny_run.config(*NO_TEACHERS, f"data.train=[{path}]", "data.validation=null", f"data.structured={mode}")
    ).labelled


def test_each_way_of_writing_becomes_json_behind_the_instruction(
    tiny_run: TinyRun, drivekd_file: Path, drivelm_file: Path
) -> None:
    for path, count in ((drivekd_file, 3), (drivelm_file, 3)):
        plain = read_samples(path)
        assert taught(tiny_run, path, "none") == plain
        only = taught(tiny_run, path, "only")
        assert len(only) == count
        for sample in only:
            assert sample.question.endswith(INSTRUCTION)
            assert valid_answer(default_schemas(sample.cameras)[sample.capability], json.loads(sample.answer or "")) is None
        assert {sample.question for sample in taught(tiny_run, path, "also")} == {one.question for one in (*plain, *only)}
    seen = json.loads(taught(tiny_run, drivelm_file, "only")[0].answer or "")["objects"]
    assert seen == [{"camera": "CAM_FRONT", "position": [35, 20], "category": "van", "status": None}]  # pictures are 70 x 40


def test_a_file_without_any_is_refused(tiny_run: TinyRun, drivekd_file: Path) -> None:
    records = json.loads(drivekd_file.read_text(encoding="utf-8"))[-1:]
    drivekd_file.write_text(json.dumps(records), encoding="utf-8")
    with pytest.raises(DataError, match=r"data.train: data.structured is also, but none of 1 records"):
        taught(tiny_run, drivekd_file, "also")


def test_the_instruction_tells_the_forms_apart_so_it_cannot_be_empty(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match=r"prompts.structured_instruction"):
        load_config(tiny_run.yaml, ["prompts.structured_instruction=''"])


@pytest.mark.e2e
@pytest.mark.usefixtures("one_thread")
def test_a_run_learns_both_forms(tiny_run: TinyRun, drivekd_file: Path, drivelm_file: Path, tmp_path: Path) -> None:
    files = f"data.train=[{drivekd_file},{drivelm_file}]"
    alone = ("data.validation=null", "data.unlabelled=[]", "training.unlabelled_batch_size=0")
    config = tiny_run.config(files, *alone, "data.structured=also", "training.steps=2", "training.packing=frame")
    summary = train(config, tmp_path / "run")
    contract = read_contract(summary.final)
    assert contract is not None
    assert contract.structured_instruction == INSTRUCTION
    longest = dict.fromkeys(CAPABILITIES, 0)
    encode = load_processor(summary.final).prompts.answer
    for sample in read_training_samples(config).labelled:
        longest[sample.capability] = max(longest[sample.capability], len(encode(sample.answer or "")))
    assert all(contract.max_new_tokens[name] > tokens for name, tokens in longest.items()), "the JSON has room"
    assert set(summary.loss) >= {"ce"}
