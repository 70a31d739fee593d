"""A checkpoint's batched answers equal transformers' own generate, one prompt at a time, in every family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from drivekd.errors import DataError
from drivekd.evaluate import evaluate
from drivekd.evaluate.answering import open_answerer
from drivekd.evaluate.checkpoint_answerer import CheckpointAnswerer
from drivekd.files import checkpoint_digest
from drivekd.hf_checkpoint import load_processor
from drivekd.images import load_image
from drivekd.models import FAMILIES, load_model
from drivekd.models.qwen2_5_vl import image_grids
from drivekd.models.tiny import (
    QWEN_SPECIAL_TOKENS,
    SPECIAL_TOKENS,
    TinySize,
    build_tiny,
    build_tiny_qwen,
    train_tokenizer,
    write_checkpoint,
)
from drivekd.quantization.form import WeightForm, quantized
from drivekd.quantization.linears import linear_layers
from drivekd.quantization.scales import write_scales
from drivekd.sample import Sample

pytestmark = pytest.mark.numerics

SIZE = TinySize(vision_layers=1, vision_width=32, language_layers=2, language_width=32, image_size_px=56, vocab_size=400)
MAX_NEW_TOKENS = 12


BUILDERS = {"internvl": (build_tiny, SPECIAL_TOKENS), "qwen2_5_vl": (build_tiny_qwen, QWEN_SPECIAL_TOKENS)}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with lively random weights, and five noise images."""
    folder = tmp_path_factory.mktemp("checkpoint")
    build, special_tokens = BUILDERS[request.param]
    tokenizer = train_tokenizer(["Is the light red? Yes. No."] * 20, [], SIZE.vocab_size, special_tokens=special_tokens)
    model = build(SIZE, tokenizer, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, every prompt gives one and the same text
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.25)
        ending = model.get_input_embeddings().weight[tokenizer.token_to_id("<|im_end|>")]
        ending.mul_(1.7)  # some rows end early
    write_checkpoint(folder / "model", model, tokenizer)
    noise = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(noise.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    """Prompts of several lengths with one to three images each, frames shared and interleaved."""
    return [
        Sample(
            source=f"f, record {index}",
            capability="planning",
            question="Is " * (index % 4 + 1) + f"it {index}?",
            answer="Yes.",
            images=tuple(folder / f"{(index + offset) % 5}.png" for offset in range(index % 3 + 1)),
            answer_form="yesno",
        )
        for index in range(15)
    ]


def vision_arguments(pixel_values: Tensor, is_image: Tensor) -> dict[str, Tensor]:
    """What the family's own class wants of images."""
    if pixel_values.ndim == 4:
        return {"pixel_values": pixel_values}
    return {
        "pixel_values": pixel_values.flatten(0, 3),
        "image_grid_thw": image_grids(pixel_values, merge=2),
        "mm_token_type_ids": is_image.int(),
    }


def generated_one_by_one(checkpoint: Path, samples: list[Sample]) -> list[str]:
    model, processor = load_model(checkpoint).eval(), load_processor(checkpoint)
    texts = []
    for sample in samples:
        prompt = [*processor.prompts.prefix(len(sample.images)), *processor.prompts.suffix(sample.question)]
        tiles = np.stack([processor.normalize(processor.resize(load_image(image))) for image in sample.images])
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **vision_arguments(torch.from_numpy(tiles), ids == processor.prompts.image_token_id),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=processor.prompts.end_of_turn_id,
            pad_token_id=processor.prompts.end_of_turn_id,
        )[0, len(prompt) :].tolist()
        texts.append(processor.prompts.decode([token for token in output if token != processor.prompts.end_of_turn_id]))
    return texts


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batches_equal_single_generation(batch_size: int, folder: Path, samples: list[Sample]) -> None:
    expected = generated_one_by_one(folder / "model", samples)
    answerer = CheckpointAnswerer(folder / "model", batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS)
    assert answerer.answers(samples) == expected
    assert len(set(expected)) > 5, "the random model must tell prompts apart for this test to mean anything"
    assert len({len(text) for text in expected}) > 3


def test_chunks_change_nothing(folder: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = CheckpointAnswerer(folder / "model", batch_size=2, max_new_tokens=MAX_NEW_TOKENS)
    whole = answerer.answers(samples)
    monkeypatch.setattr("drivekd.evaluate.checkpoint_answerer._BATCHES_PER_CHUNK", 1)
    assert answerer.answers(samples) == whole


def test_each_image_is_read_once(folder: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> object:
        read.append(path)
        return load_image(path)

    monkeypatch.setattr("drivekd.evaluate.checkpoint_answerer.load_image", counted)
    open_answerer(folder / "model").answers(samples)
    assert sorted(read) == sorted(set(read))


def test_black_images_take_the_same_path(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(tmp_path / "black.png")
    blackened = [
        Sample(sample.source, "planning", sample.question, "Yes.", (tmp_path / "black.png",) * len(sample.images), "yesno")
        for sample in samples
    ]
    answerer = CheckpointAnswerer(folder / "model", batch_size=64, max_new_tokens=MAX_NEW_TOKENS)
    black = answerer.answers(samples, images="black")
    assert black == answerer.answers(blackened)
    assert black != answerer.answers(samples)


def test_progress_counts_to_the_end(folder: Path, samples: list[Sample]) -> None:
    seen: list[tuple[int, int]] = []
    answerer = CheckpointAnswerer(folder / "model", batch_size=4, max_new_tokens=1)
    answerer.answers(samples, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 15), (8, 15), (12, 15), (15, 15)]


def test_a_missing_image_names_its_record(folder: Path) -> None:
    sample = Sample("f.json, record 7", "planning", "Is it?", "No.", (folder / "none.png",), "yesno")
    with pytest.raises(DataError, match=r"f\.json, record 7: images: .*none\.png"):
        open_answerer(folder / "model").answers([sample])


def test_the_digest_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    digest = checkpoint_digest(folder / "model")
    assert digest == open_answerer(folder / "model").digest
    assert digest.startswith("sha256:")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (folder / "model").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert checkpoint_digest(copy) == digest
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert checkpoint_digest(copy) != digest


def test_the_whole_way(folder: Path, samples: list[Sample]) -> None:
    report = evaluate(open_answerer(folder / "model", max_new_tokens=4), samples)
    assert report.answerer == str(folder / "model")
    assert report.row("planning").n == 15


def test_a_checkpoint_with_scales_answers_with_its_rounded_weights(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    """As does a checkpoint whose weights are those values already, its head tied or not."""
    model: Any = load_model(folder / "model")
    layers: Any = linear_layers(model)
    forms = {name: WeightForm(4 if name.startswith("layers.0.") else 8, 32) for name in layers}
    found = {name: quantized(layer.weight.detach().flatten(1), forms[name]) for name, layer in layers.items()}
    shutil.copytree(folder / "model", tmp_path / "scaled")
    write_scales(tmp_path / "scaled", {name: one.scales for name, one in found.items()}, forms)

    table = model.get_input_embeddings().weight
    model.lm_head.weight = torch.nn.Parameter(table.detach().clone())
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    table.data = quantized(table.detach(), WeightForm(8, 32), half=True).dequantized()
    for name, layer in linear_layers(model).items():
        layer.weight.data = found[name].dequantized().view_as(layers[name].weight)
    shutil.copytree(folder / "model", tmp_path / "by hand")
    model.save_pretrained(tmp_path / "by hand")

    plain, scaled, by_hand = (
        CheckpointAnswerer(path, batch_size=8, max_new_tokens=MAX_NEW_TOKENS)
        for path in (folder / "model", tmp_path / "scaled", tmp_path / "by hand")
    )
    assert scaled.answers(samples) == by_hand.answers(samples) != plain.answers(samples)
    assert scaled.name == f"{tmp_path / 'scaled'} (weights rounded: int4 in blocks of 32, int8 in blocks of 32)"
    assert plain.name == str(folder / "model")
    assert scaled.digest != plain.digest
