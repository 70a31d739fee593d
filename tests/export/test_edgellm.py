"""The kit for TensorRT Edge-LLM: complete, true to the bundle, and what it asks for is what the referee judges."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from drivekd.errors import BundleError, CheckpointError, ExportError, UsageError
from drivekd.export.edgellm import write_edgellm_kit
from drivekd.export.edgellm_readme import EDGELLM_VERSION, kit_readme
from drivekd.images import PatchSettings, load_image
from drivekd.runtime import load_bundle, read_bundle
from drivekd.runtime.parity.golden import NUM_IMAGES, load_golden
from drivekd.runtime.parity.referee import judge_outputs

pytestmark = pytest.mark.numerics

EDGELLM_PROGRAMS = {"tensorrt-edgellm-export", "llm_build", "visual_build", "llm_inference"}


@pytest.fixture(scope="module")
def kit(bundle: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_edgellm_kit(bundle, checkpoint, tmp_path_factory.mktemp("kit") / "kit")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_kit_is_complete(kit: Path, checkpoint: Path) -> None:
    assert sorted(path.name for path in kit.iterdir()) == ["README.md", "checkpoint", "expected.json", "images", "input.json"]
    for path in checkpoint.iterdir():
        assert (kit / "checkpoint" / path.name).read_bytes() == path.read_bytes()
    assert (kit / "checkpoint" / "chat_template.jinja").is_file()
    assert not (kit / "checkpoint").is_symlink()


def test_the_pictures_are_the_golden_frames(kit: Path, bundle: Path) -> None:
    golden = load_golden(read_bundle(bundle).files["golden.npz"], "")
    pictures = sorted((kit / "images").iterdir())
    assert len(pictures) == len(golden["images"])
    for path, image in zip(pictures, golden["images"], strict=True):
        assert np.array_equal(load_image(path), image)


def test_the_requests_ask_what_the_bundle_asks(kit: Path, bundle: Path) -> None:
    """Greedy, one request a capability in the bundle's order, images before the text, every path within the kit."""
    asked = read_json(kit / "input.json")
    assert (asked["batch_size"], asked["temperature"], asked["top_k"], asked["apply_chat_template"]) == (1, 0.0, 1, True)
    with load_bundle(bundle, threads=1) as session:
        questions = session.model.questions()
    assert len(asked["requests"]) == len(questions)
    for request, question in zip(asked["requests"], questions.values(), strict=True):
        (message,) = request["messages"]
        *pictures, text = message["content"]
        assert message["role"] == "user"
        assert text == {"type": "text", "text": question}
        assert [part["type"] for part in pictures] == ["image"] * NUM_IMAGES
        assert all((kit / part["image"]).is_file() for part in pictures)
    golden = load_golden(read_bundle(bundle).files["golden.npz"], "")
    assert asked["max_generate_length"] == len(golden["tokens"])


def test_the_expected_tokens_pass_the_referee(kit: Path, bundle: Path, tmp_path: Path) -> None:
    expected = read_json(kit / "expected.json")
    read = read_bundle(bundle)
    assert expected["bundle"] == read.digest
    assert expected["edgellm_version"] == EDGELLM_VERSION
    answers = {name: {"tokens": answer["tokens"]} for name, answer in expected["answers"].items()}
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"answers": answers}))
    assert judge_outputs(bundle, out).passed
    golden = load_golden(read.files["golden.npz"], "")
    for name, answer in expected["answers"].items():
        assert answer["prompt_ids"] == golden[f"prompt_ids.{name}"].tolist()
        assert len(answer["tokens"]) == len(answer["margins"])


def test_another_engines_answers_are_judged(kit: Path, bundle: Path, tmp_path: Path) -> None:
    """Files as llm_inference writes them, with and without token ids; one changed token fails."""
    expected, asked = read_json(kit / "expected.json"), read_json(kit / "input.json")
    responses = [
        {"output_text": answer["text"], "output_ids": answer["tokens"], "request_idx": index, "batch_idx": 0, **request}
        for index, (answer, request) in enumerate(zip(expected["answers"].values(), asked["requests"], strict=True))
    ]
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"responses": responses}))
    assert judge_outputs(bundle, out).passed
    margins = expected["answers"]["planning"]["margins"]
    place = next(index for index, margin in enumerate(margins) if margin > 0.01)
    responses[2]["output_ids"][place] += 1
    out.write_text(json.dumps({"responses": responses}))
    report = judge_outputs(bundle, out)
    assert not report.passed
    assert report.answers[2].difference is not None
    assert report.answers[2].difference.position == place


def test_drivekd_run_is_judged_as_it_is(bundle: Path, tmp_path: Path) -> None:
    """The bundle's own answers to the golden frames, in the form of `drivekd run --json`: text, and a number of tokens."""
    golden = load_golden(read_bundle(bundle).files["golden.npz"], "")
    with load_bundle(bundle, threads=1) as session:
        names = session.cameras or [f"camera_{index}" for index in range(len(golden["images"]))]
        frame = dict(zip(names, golden["images"], strict=True))
        answers = session.answer(frame, max_new_tokens=len(golden["tokens"]))
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"answers": {name: {"text": a.text, "tokens": a.tokens} for name, a in answers.items()}}))
    report = judge_outputs(bundle, out)
    assert report.passed, report.verdict
    assert {answer.judged_by for answer in report.answers} == {"text"}


def test_the_readme_has_every_command_with_this_bundles_numbers(kit: Path, bundle: Path) -> None:
    text = (kit / "README.md").read_text()
    read = read_bundle(bundle)
    golden = load_golden(read.files["golden.npz"], "")
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for program in EDGELLM_PROGRAMS:
        assert program in commands
    assert f"tensorrt-edgellm[export]=={EDGELLM_VERSION}" in commands
    assert "--branch v" + EDGELLM_VERSION in commands
    assert f"drivekd check {bundle.name} --outputs out.json" in commands
    longest = max(len(golden[name]) for name in golden if name.startswith("prompt_ids."))
    limit = int(re.findall(r"--maxInputLen (\d+)", commands)[0])
    assert longest <= limit < longest + 256
    assert int(re.findall(r"--maxKVCacheCapacity (\d+)", commands)[0]) >= longest + len(golden["tokens"])
    tokens = read.manifest.chat.tokens_per_image
    assert f"--minImageTokens {tokens} --maxImageTokens {NUM_IMAGES * tokens} --maxImageTokensPerImage {tokens}" in commands
    assert "not run on a device" in text
    assert "written for tiles of 256 tokens; this model has 4" in text
    assert "{" not in re.sub(r"`[^`]*`", "", text), "a number that was not filled in"


def test_the_readme_warns_where_a_faithful_engine_would_fail(bundle: Path) -> None:
    read = read_bundle(bundle)
    golden = load_golden(read.files["golden.npz"], "")
    graphs = {name: dataclasses.replace(spec, precision="int4") for name, spec in read.manifest.graphs.items()}
    quantized = dataclasses.replace(read.manifest, graphs=graphs, precision="int4")
    assert "from which a faithful fp16" in kit_readme(quantized, "b", golden, ["images/a.png"])
    assert "faithful" not in kit_readme(read.manifest, "b", golden, ["images/a.png"])
    patches = dataclasses.replace(read.manifest, images=PatchSettings(84, 56))
    text = kit_readme(patches, "b", golden, ["images/a.png"])
    assert "so nothing is resized" in text
    assert "thumbnail" not in text


def test_a_link_in_place_of_a_copy(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    kit = write_edgellm_kit(bundle, checkpoint, tmp_path / "kit", link=True)
    assert (kit / "checkpoint").is_symlink()
    assert (kit / "checkpoint" / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()


def test_beside_the_bundle_unless_told_otherwise(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "car"))
    kit = write_edgellm_kit(own, checkpoint, link=True)
    assert kit == tmp_path / "car-edgellm"
    read_bundle(own)  # nothing was put into it
    with pytest.raises(UsageError, match="is not empty; name another --out"):
        write_edgellm_kit(own, checkpoint)


def test_other_weights_and_missing_parts_are_refused(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 1}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"other holds other weights \(sha256 .*the engine's answers would be judged by another"):
        write_edgellm_kit(bundle, other, tmp_path / "kit")
    (other / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no .*safetensors weights found"):
        write_edgellm_kit(bundle, other, tmp_path / "kit")
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        write_edgellm_kit(bundle, tmp_path / "none", tmp_path / "kit")
    with pytest.raises(BundleError, match="not a bundle directory"):
        write_edgellm_kit(tmp_path / "none", checkpoint, tmp_path / "kit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"], "nothing was left half-written"


def test_a_full_disk_leaves_nothing(bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ExportError, match="free"):
        write_edgellm_kit(bundle, checkpoint, tmp_path / "kit")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_merged_into_the_kits_checkpoint(
    bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bundle of an adapter was made from is the base with it; Edge-LLM gets that as one checkpoint."""
    from peft import LoraConfig, get_peft_model

    import drivekd.export.edgellm as writer
    from drivekd.models import load_model

    base = load_model(checkpoint)
    adapted: Any = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(checkpoint)}))
    digest = read_bundle(bundle).manifest.model.weights_sha256
    monkeypatch.setattr(writer, "weights_sha256", lambda *directories: digest)  # this bundle stands for one of the adapter's
    kit = write_edgellm_kit(bundle, tmp_path / "adapter", tmp_path / "kit", link=True)
    merged = load_model(kit / "checkpoint")
    expected = adapted.merge_and_unload()
    for (name, found), (_, wanted) in zip(merged.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(found, wanted), name
    assert (kit / "checkpoint" / "tokenizer.json").is_file()
    assert (kit / "checkpoint" / "chat_template.jinja").is_file()
