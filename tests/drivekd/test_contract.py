"""contract.json: read strictly, written whole, and held against every file beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import QWEN_CAMERA_SIZE_PX, TinyRun
from tokenizers import Tokenizer

from drivekd.contract import CONTRACT_FILE, Contract, answer_budget, differences, read_contract, write_contract
from drivekd.errors import CheckpointError, ConfigError
from drivekd.files import TRACES_FILE
from drivekd.hf_checkpoint import Checkpoint, CheckpointFiles, load_processor
from drivekd.images import PREPROCESSING_VERSION
from drivekd.processor import Processor, prompt_digest

CONTRACT = Contract(
    format_version=1,
    preprocessing=PREPROCESSING_VERSION,
    family="internvl",
    tokenizer="00",
    tile_px=(56, 56),
    tiles="1x1",
    colours="rgb",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    cameras=("CAM_FRONT", "CAM_BACK"),
    coordinates="normalized",
    prompts={"perception": "Was ist auf der Straße?", "planning": "At {ego_speed_mps} m/s?"},
    variables={"ego_speed_mps": 8},
    note="",
    structured_instruction="",
    max_new_tokens={"perception": 40, "planning": 24},
    data={"train[0]": "ab"},
)


def contract_of(processor: Processor, **changed: Any) -> Contract:
    images = processor.images
    own: dict[str, Any] = {"family": processor.model_type, "tokenizer": prompt_digest(processor.prompts)}
    return replace(CONTRACT, **own, tile_px=images.tile_px, mean=images.mean, std=images.std, **changed)


def processor_files(source: Path, folder: Path) -> Path:
    """A checkpoint without weights: nothing here needs them."""
    return Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture
def bound(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A checkpoint with its contract."""
    folder = processor_files(tiny_run.student, tmp_path / "model")
    write_contract(folder, contract_of(load_processor(folder)))
    return folder


@pytest.fixture
def bound_qwen(tiny_qwen_run: TinyRun, tmp_path: Path) -> Path:
    folder = processor_files(tiny_qwen_run.student, tmp_path / "qwen")
    write_contract(folder, contract_of(load_processor(folder)))
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))
    change(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_contract(tmp_path) is None
    write_contract(tmp_path, CONTRACT)
    assert read_contract(tmp_path) == CONTRACT
    assert "Straße" in (tmp_path / CONTRACT_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(colour="red"), "unknown key 'colour'"),
        (lambda c: c.pop("cameras"), "key 'cameras' is missing"),
        (lambda c: c.update(tile_px=[56]), r"contract\.tile_px: expected 2 values, found 1"),
        (lambda c: c["max_new_tokens"].update(planning="24"), r"contract\.max_new_tokens\.planning: expected int, found '24'"),
        (lambda c: c["max_new_tokens"].update(planning=0), r"max_new_tokens\.planning is 0"),
        (lambda c: c["max_new_tokens"].pop("planning"), "planning is in one of them alone"),
        (lambda c: c.update(format_version=2), "format_version is 2; this drivekd reads 1"),
        (
            lambda c: c.update(preprocessing=7),
            f"preprocessing is 7, this drivekd makes pixels by version {PREPROCESSING_VERSION}",
        ),
        (lambda c: c.update(colours="bgr"), "colours is 'bgr'; expected 'rgb'"),
        (lambda c: c.update(coordinates="metres"), "coordinates is 'metres'"),
        (lambda c: c.update(cameras=["CAM_FRONT", "CAM_FRONT"]), "stands twice"),
        (lambda c: c.update(tile_px=[0, 56]), r"tile_px is \[0, 56\]"),
        (lambda c: c.update(tiles="2 by 1"), "tiles: expected columns x rows"),
    ],
)
def test_a_wrong_contract_names_file_and_key(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    write_contract(tmp_path, CONTRACT)
    edit(tmp_path / CONTRACT_FILE, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_contract(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / CONTRACT_FILE))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused_when_the_checkpoint_is_opened(bound: Path, text: bytes) -> None:
    (bound / CONTRACT_FILE).write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"^{bound / CONTRACT_FILE}"):
        Checkpoint.open(bound)


def test_a_checkpoint_shows_its_contract_and_keeps_to_it(bound: Path, tiny_run: TinyRun) -> None:
    checkpoint = Checkpoint.open(bound)
    assert checkpoint.contract is not None
    assert load_processor(checkpoint).images.tile_px == checkpoint.contract.tile_px
    assert Checkpoint.open(tiny_run.student).contract is None


def test_a_contract_that_a_run_has_lost_is_missed(bound: Path) -> None:
    (bound / CONTRACT_FILE).unlink()
    assert Checkpoint.open(bound).contract is None
    (bound / "config.yaml").write_text("student:\n  checkpoint: x\ndata: {}\ntraining:\n  steps: 3\n")
    with pytest.raises(CheckpointError, match=rf"config\.yaml says that drivekd trained this, but {CONTRACT_FILE} is missing"):
        Checkpoint.open(bound)
    (bound / "config.yaml").write_text("model: of another tool\n")
    assert Checkpoint.open(bound).contract is None


@pytest.mark.parametrize(
    ("field", "value", "other_side"),
    [
        ("family", "qwen2_5_vl", "config.json says internvl"),
        ("tile_px", [112, 112], "preprocessor_config.json says 56x56 px"),
        ("mean", [0.5, 0.5, 0.5], r"preprocessor_config.json says \[0.485"),
        ("std", [0.5, 0.5, 0.5], r"preprocessor_config.json says \[0.229"),
        ("tokenizer", "ff", "tokenizer.json or chat template says"),
    ],
)
def test_a_contradiction_names_both_sides(bound: Path, field: str, value: object, other_side: str) -> None:
    edit(bound / CONTRACT_FILE, lambda c: c.update({field: value}))
    with pytest.raises(CheckpointError, match=other_side) as caught:
        load_processor(bound)
    assert str(caught.value).startswith(f"{bound / CONTRACT_FILE} says")


def test_another_camera_json_is_refused_and_a_missing_one_is_not(bound_qwen: Path) -> None:
    edit(bound_qwen / "camera.json", lambda tree: tree.update(width_px=112))
    with pytest.raises(CheckpointError, match=rf"{CONTRACT_FILE} says a tile of 84x56 px, .*camera.json says 112x56 px"):
        load_processor(bound_qwen)
    (bound_qwen / "camera.json").unlink()
    assert load_processor(bound_qwen).images.tile_px == QWEN_CAMERA_SIZE_PX
    assert load_processor(bound_qwen, camera_size_px=(56, 56)).images.tile_px == (56, 56)  # a training that sets out anew
    edit(bound_qwen / CONTRACT_FILE, lambda c: c.update(tile_px=[85, 56]))
    with pytest.raises(CheckpointError, match=rf"{CONTRACT_FILE}: camera_size_px: width 85"):
        load_processor(bound_qwen)


def test_a_tokenizer_of_other_merges_or_another_template_is_no_longer_the_trained_one(bound: Path) -> None:
    template = (bound / "chat_template.jinja").read_text(encoding="utf-8")
    (bound / "chat_template.jinja").write_text("Drive. " + template, encoding="utf-8")
    with pytest.raises(CheckpointError, match="chat template says"):
        load_processor(bound)
    (bound / "chat_template.jinja").write_text(template, encoding="utf-8")
    edit(bound / "tokenizer.json", lambda tree: tree["model"].update(merges=[]))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json or chat template says"):
        load_processor(bound)


def test_a_tokenizer_saved_by_others_stays_the_trained_one(bound: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bound / "tokenizer.json"))
    tokenizer.save(str(bound / "tokenizer.json"), pretty=False)  # other bytes
    assert load_processor(bound) is not None


def test_an_adapters_contract_stands_over_its_bases(bound_qwen: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert load_processor(bound_qwen, adapter=CheckpointFiles(adapter)).images.tile_px == QWEN_CAMERA_SIZE_PX
    contract = read_contract(bound_qwen)
    assert contract is not None
    write_contract(adapter, replace(contract, tile_px=(112, 84)))
    assert load_processor(bound_qwen, adapter=CheckpointFiles(adapter)).images.tile_px == (112, 84)


def test_internvls_tile_is_within_the_model(bound: Path) -> None:
    with pytest.raises(ConfigError, match="camera_size_px is 112x112 px"):
        load_processor(bound, camera_size_px=(112, 112))


def test_tiles_are_the_contracts(bound: Path, bound_qwen: Path) -> None:
    edit(bound / CONTRACT_FILE, lambda c: c.update(tiles="2x1"))
    assert str(load_processor(bound).images.tiling) == "2x1"
    assert str(load_processor(bound, tiles="1x1").images.tiling) == "1x1"  # a training that sets out anew
    (bound / "camera.json").write_text('{"tiles": "3x1"}')
    with pytest.raises(CheckpointError, match=rf"{CONTRACT_FILE} says tiles a camera 2x1, .*camera.json says 3x1"):
        load_processor(bound)
    edit(bound_qwen / CONTRACT_FILE, lambda c: c.update(tiles="2x1"))
    with pytest.raises(CheckpointError, match=rf"{CONTRACT_FILE}: tiles is 2x1, but .* is Qwen2\.5-VL"):
        load_processor(bound_qwen)


def test_differences_are_told_by_field() -> None:
    assert differences(CONTRACT, CONTRACT) == []
    changed = replace(CONTRACT, cameras=("CAM_BACK",), max_new_tokens={"perception": 40, "planning": 32})
    assert differences(CONTRACT, changed) == [
        "cameras: CAM_FRONT, CAM_BACK, now CAM_BACK",
        'max_new_tokens: {"perception": 40, "planning": 24}, now {"perception": 40, "planning": 32}',
    ]


def test_a_question_of_no_capability_may_be_answered_as_long_as_the_longest() -> None:
    assert [answer_budget(CONTRACT.max_new_tokens, name) for name in ("perception", "planning", "question")] == [40, 24, 40]
    assert answer_budget({}, "question") == 64


@pytest.mark.numerics
def test_a_folder_that_training_wrote_is_not_read_without_its_contract(bound: Path, tiny_run: TinyRun) -> None:
    (bound / TRACES_FILE).write_bytes(b"")
    load_processor(bound)
    (bound / CONTRACT_FILE).rename(bound / "elsewhere.json")
    with pytest.raises(CheckpointError, match=r"contract\.json is missing, yet data_traces\.safetensors says"):
        load_processor(bound)
    with pytest.raises(CheckpointError, match=r"contract\.json is missing"):  # an adapter's, over a released checkpoint
        load_processor(tiny_run.student, adapter=CheckpointFiles(bound))
