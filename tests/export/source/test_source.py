"""What an export can start from: checkpoints, runs and adapters; and what it says of those that it cannot take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import TinyRun

from drivekd.distill.training.train import train
from drivekd.errors import CheckpointError
from drivekd.export.source.checkpoint import locate_checkpoint, stated_license
from drivekd.export.source.source import load_source
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.models import load_model

SHORT = ("teachers={}", "data.unlabelled=[]", "training.unlabelled_batch_size=0", "training.steps=2", "training.batch_size=3")
LORA = ("student.train=[language_model]", "student.lora.rank=4", "optimizer.learning_rate=0.05")

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("module_on_one_thread")]


@pytest.fixture(scope="module")
def plain(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(tiny_run.config(*SHORT), out)
    return out


@pytest.fixture(scope="module")
def lora(family_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of adapters."""
    out = tmp_path_factory.mktemp("lora") / "run"
    train(family_run.config(*SHORT, *LORA), out)
    return out


def weights(path: Path) -> dict[str, Any]:
    return load_source(path, None).model.state_dict()


def assert_weights(found: dict[str, Any], expected: dict[str, Any], atol: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol)


def test_a_checkpoint_of_either_family(family_run: TinyRun) -> None:
    source = load_source(family_run.student, None)
    axes = 3 if source.info.family == "qwen2_5_vl" else 1
    assert source.origin == {"kind": "checkpoint"}
    assert (source.info.rotary_axes, source.info.num_layers, source.info.num_heads, source.info.num_kv_heads) == (axes, 3, 4, 2)
    assert source.processor.images == source.images
    assert next(source.model.parameters()).dtype == torch.float32


def test_a_run_is_taken_by_its_final_student(plain: Path) -> None:
    by_run, by_final = load_source(plain, None), load_source(plain / "final", None)
    assert by_run.info == by_final.info
    assert by_run.origin == by_final.origin
    assert by_run.origin["kind"] == "run"
    assert len(by_run.origin["training_sha256"]) == 64
    assert_weights(by_run.model.state_dict(), dict(load_model(plain / "final").state_dict()))
    assert "important objects" in by_run.prompts.prompts["perception"], "the run's own questions"


def test_a_step_of_a_run_is_a_checkpoint(plain: Path) -> None:
    assert load_source(plain / "checkpoints" / "step-2", None).origin == {"kind": "checkpoint"}


def test_an_adapter_is_merged_into_its_base(lora: Path, family_run: TinyRun) -> None:
    """peft's merge of final/adapter gives what drivekd's merge wrote to final/."""
    final, adapter = load_source(lora, None), load_source(lora / "final" / "adapter", None)
    assert final.origin["kind"] == adapter.origin["kind"] == "lora"
    assert type(adapter.model) is type(final.model)
    assert_weights(adapter.model.state_dict(), final.model.state_dict(), atol=1e-6)  # one product in another order
    base = load_source(family_run.student, None)
    name = next(name for name in base.model.state_dict() if name.endswith("layers.1.mlp.up_proj.weight"))
    assert not torch.equal(base.model.state_dict()[name], adapter.model.state_dict()[name]), "it learnt something"
    digests = {source.info.weights_sha256 for source in (final, adapter, base)}
    assert len(digests) == 3, "other files are other weights"


def test_an_adapter_s_base_may_lie_beside_it(lora: Path, family_run: TinyRun, tmp_path: Path) -> None:
    adapter = copy_of(lora / "final" / "adapter", tmp_path)
    shutil.copytree(family_run.student, adapter / "base")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="base")
    assert locate_checkpoint(adapter).checkpoint.path == adapter / "base"


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_text_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = json.loads((folder / "config.json").read_text())["text_config"]
        edit_json(folder / "config.json", text_config={**text, **changes})

    return edit


def split_into_shards(folder: Path) -> None:
    """The layout of large checkpoints, with one shard lost."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-0000{number + 1}-of-00002.safetensors": names[number::2] for number in range(2)}
    for shard, members in shards.items():
        save_file({name: tensors[name].contiguous() for name in members}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00002-of-00002.safetensors").unlink()


def spoil(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit_json(folder / "config.json", model_type="llava"), "model_type is 'llava'"),
        (split_into_shards, "1 weight files are missing, first model-00002-of-00002"),
        (spoil, r"copy: .*up_proj\.weight has 1 values that are NaN or infinite"),
        (edit_text_config(num_hidden_layers=0), r"text_config\.num_hidden_layers is 0; expected at least one"),
        (edit_text_config(num_hidden_layers=2), r"config\.json: contradicts itself .*layer_types"),
        (
            edit_text_config(
                use_sliding_window=True, sliding_window=16, layer_types=["full_attention", *["sliding_attention"] * 2]
            ),
            "has layers of full_attention, sliding_attention; this version takes full_attention only",
        ),
        (
            edit_text_config(
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "original_max_position_embeddings": 512,
                }
            ),
            "rotary positions of type 'longrope' change with the prompt",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (shutil.rmtree, "no such checkpoint directory"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(
    tiny_run: TinyRun, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    folder = copy_of(tiny_run.student, tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_source(folder, None)


def test_an_unfinished_run_names_what_can_be_taken(plain: Path, tmp_path: Path) -> None:
    run = copy_of(plain, tmp_path)
    shutil.rmtree(run / "final")
    with pytest.raises(CheckpointError, match=r"a run without final/: it has not ended.*--resume.*checkpoints/step-N or best"):
        load_source(run, None)


def test_a_step_of_adapters_is_no_model(lora: Path) -> None:
    with pytest.raises(CheckpointError, match="has what trains, without the base; take final/"):
        load_source(lora / "checkpoints" / "step-2", None)


def drop_adapter_weight(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(iter(sorted(tensors))))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def rename_adapter_weight(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.elsewhere.lora_A.weight"] = torch.zeros(4, 4)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"adapter_model\.safetensors is missing; an adapter"),
        (lambda folder: (folder / "adapter_model.safetensors").write_text("short"), "does not fit its base"),
        (
            lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path="OpenGVLab/InternVL3-1B-hf"),
            r"its base OpenGVLab/InternVL3-1B-hf is not a directory here\. Fetch it \(hf download OpenGVLab/InternVL3-1B-hf",
        ),
        (
            lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path=None),
            "base_model_name_or_path is missing",
        ),
        (
            lambda folder: edit_json(folder / "adapter_config.json", peft_type="IA3"),
            "peft_type is 'IA3'; only LORA can be merged",
        ),
        (lambda folder: edit_json(folder / "adapter_config.json", r=8), "does not fit its base"),
        (drop_adapter_weight, "1 weights are missing, first base_model.model"),
        (rename_adapter_weight, "1 weights are unknown to the base, first .*elsewhere"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_said(lora: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = copy_of(lora / "final" / "adapter", tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_source(folder, None)


@pytest.mark.parametrize(
    ("files", "license_"),
    [
        ({}, ""),
        ({"README.md": "---\nlicense: apache-2.0\nbase: x\n---\n# Model"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"}, "qwen-research"),
        ({"README.md": "---\nlicense:\n- mit\n- apache-2.0\n---\n"}, "mit, apache-2.0"),
        ({"README.md": "# Model\n---\nlicense: mit\n---\n", "LICENSE": "\n  Apache License\n  Version 2.0"}, "Apache License"),
        ({"README.md": "---\nlicense: [\n---\n"}, ""),
        ({"README.md": "---\ntags: []\n---\n", "LICENSE.txt": "MIT License\n"}, "MIT License"),
        ({"LICENSE": ""}, ""),
    ],
)
def test_the_licence_is_what_the_checkpoint_states(tmp_path: Path, files: dict[str, str], license_: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert stated_license([tmp_path]) == license_


def test_the_nearest_licence_counts(tmp_path: Path) -> None:
    for name in ("adapter", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE").write_text(f"licence of {name}")
    assert stated_license([tmp_path / "adapter", tmp_path / "base"]) == "licence of adapter"
    (tmp_path / "adapter" / "LICENSE").unlink()
    assert stated_license([tmp_path / "adapter", tmp_path / "base"]) == "licence of base"


def test_a_whole_model_with_an_adapter_beside_it_is_refused_by_everybody(lora: Path, tmp_path: Path) -> None:
    """Merged or not? An export would take the adapter, an evaluation the model, transformers one on top of the other."""
    folder = copy_of(lora / "final", tmp_path)
    for path in (folder / "adapter").glob("adapter_*"):
        shutil.move(path, folder / path.name)
    for open_it in (lambda: load_source(folder, None), lambda: Checkpoint.open(folder), lambda: load_processor(folder)):
        with pytest.raises(CheckpointError, match=r"holds a whole model .model.safetensors. and an adapter .* Keep one"):
            open_it()
    (folder / "model.safetensors").unlink()  # now it is an adapter with a configuration beside it
    assert load_source(folder, None).origin["kind"] == "lora"
    with pytest.raises(CheckpointError, match=r"no \*.safetensors weights found"):
        load_model(folder)
