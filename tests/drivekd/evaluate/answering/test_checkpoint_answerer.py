"""A checkpoint's batched answers equal transformers' own generate, one prompt at a time, in every family."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from drivekd.answered import Given
from drivekd.errors import DataError, RunnerError, UsageError
from drivekd.evaluate import evaluate
from drivekd.evaluate.answering import AnswererSettings, Pictures, open_answerer
from drivekd.evaluate.answering.checkpoint_answerer import checkpoint_answerer
from drivekd.evaluate.answering.generation import read_prefixes
from drivekd.evaluate.answering.model_answerer import ModelAnswerer
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


def answerer_of(checkpoint: Path, batch_size: int = 64, max_new_tokens: int = MAX_NEW_TOKENS) -> ModelAnswerer:
    return checkpoint_answerer(checkpoint, AnswererSettings(batch_size=batch_size, max_new_tokens=max_new_tokens))


def texts(given: list[Given]) -> list[str]:
    return [one.text for one in given]


def generated_one_by_one(checkpoint: Path, samples: list[Sample]) -> list[Given]:
    """By transformers' own loop over the whole prompt, and its scores."""
    model, processor = load_model(checkpoint).eval(), load_processor(checkpoint)
    found = []
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
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = output.sequences[0, len(prompt) :].tolist()
        ended = tokens[-1:] == [processor.prompts.end_of_turn_id]
        tokens = tokens[:-1] if ended else tokens
        logprobs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(output.logits, tokens, strict=False)]
        mean = sum(logprobs) / len(logprobs) if logprobs else None
        found.append(Given(processor.prompts.decode(tokens), "stop" if ended else "length", len(tokens), mean))
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batches_equal_single_generation(batch_size: int, folder: Path, samples: list[Sample]) -> None:
    expected = generated_one_by_one(folder / "model", samples)
    given = answerer_of(folder / "model", batch_size).answers(samples)
    assert [(one.text, one.finish_reason, one.tokens) for one in given] == [
        (one.text, one.finish_reason, one.tokens) for one in expected
    ]
    for one, other in zip(given, expected, strict=True):
        assert one.mean_logprob == (None if other.mean_logprob is None else pytest.approx(other.mean_logprob, abs=1e-4))
    assert len(set(texts(expected))) > 5, "the random model must tell prompts apart for this test to mean anything"
    assert {one.finish_reason for one in expected} == {"stop", "length"}
    assert len({one.tokens for one in expected}) > 2


def test_a_frames_pictures_are_read_by_the_decoder_once(
    folder: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty questions about five frames: five prefixes, in any number of batches."""
    prefixes: list[int] = []

    def counted(model: Any, prompts: Any, *rest: Any) -> Any:
        prefixes.append(len(prompts))
        return read_prefixes(model, prompts, *rest)

    monkeypatch.setattr("drivekd.evaluate.answering.model_answerer.read_prefixes", counted)
    many = [replace(sample, question=f"{number} {sample.question}") for sample in samples[:5] for number in range(10)]
    whole = texts(answerer_of(folder / "model", 64).answers(many))
    assert sum(prefixes) == 5
    prefixes.clear()
    assert texts(answerer_of(folder / "model", 4).answers(many)) == whole
    assert sum(prefixes) == 5, "a frame with more questions than a batch"


def test_windows_change_nothing(folder: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = answerer_of(folder / "model", 2)
    whole = texts(answerer.answers(samples))
    monkeypatch.setattr("drivekd.evaluate.answering.model_answerer._WINDOW_BATCHES", 1)
    monkeypatch.setattr("drivekd.evaluate.answering.model_answerer._KEPT_BYTES", 0)
    assert texts(answerer.answers(samples)) == whole


def test_each_image_is_read_once(folder: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> object:
        read.append(path)
        return load_image(path)

    monkeypatch.setattr("drivekd.evaluate.answering.pictures.load_image", counted)
    answerer_of(folder / "model", 4, 1).answers(samples)
    assert sorted(read) == sorted(set(read))


def test_black_images_take_the_same_path(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(tmp_path / "black.png")
    blackened = [
        Sample(sample.source, "planning", sample.question, "Yes.", (tmp_path / "black.png",) * len(sample.images), "yesno")
        for sample in samples
    ]
    answerer = answerer_of(folder / "model")
    black = answerer.answers(samples, pictures=Pictures("NoImage"))
    assert texts(black) == texts(answerer.answers(blackened))
    assert texts(black) != texts(answerer.answers(samples))


def test_each_answer_is_told_once(folder: Path, samples: list[Sample]) -> None:
    seen: dict[int, Given] = {}
    given = answerer_of(folder / "model", 4).answers(samples, on_answer=lambda i, one: seen.update({i: one}))
    assert [seen[i] for i in range(15)] == given


def test_a_missing_image_names_its_record(folder: Path) -> None:
    sample = Sample("f.json, record 7", "planning", "Is it?", "No.", (folder / "none.png",), "yesno")
    with pytest.raises(DataError, match=r"f\.json, record 7: images: .*none\.png"):
        open_answerer(folder / "model").answers([sample])


def test_budgets_by_capability_end_with_the_models_positions(folder: Path, samples: list[Sample]) -> None:
    asked = [replace(samples[0], capability=name) for name in ("planning", "perception", "reasoning")]
    settings = AnswererSettings(max_new_tokens={"planning": 1, "perception": 3})
    answerer = open_answerer(folder / "model", settings)
    answerer._model.lm_head.weight.data[answerer._processor.prompts.end_of_turn_id] = 0  # type: ignore[attr-defined]
    prompts = load_processor(folder / "model").prompts
    asks, room = len(prompts.prefix(1)) + len(prompts.suffix(asked[0].question)), 7
    answerer._max_positions = asks + room  # type: ignore[attr-defined]
    assert [(one.tokens, one.finish_reason) for one in answerer.answers(asked)] == [
        (1, "length"),
        (3, "length"),
        (room, "length"),
    ]
    answerer._max_positions = asks  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=rf"record 0: 1 pictures and the question make {asks} tokens; the model has"):
        answerer.answers(asked)


def test_half_precision_answers(folder: Path, samples: list[Sample]) -> None:
    """Random weights are no test of how near it comes; that its numbers are bf16's, and finite, is."""
    given = open_answerer(folder / "model", AnswererSettings(precision="bf16", max_new_tokens=4)).answers(samples)
    exact = open_answerer(folder / "model", AnswererSettings(max_new_tokens=4)).answers(samples)
    means = [(one.mean_logprob, other.mean_logprob) for one, other in zip(given, exact, strict=True) if one.text == other.text]
    assert means and any(one != other for one, other in means)
    assert all(one == pytest.approx(other, abs=0.3) for one, other in means)  # bf16 has 8 bits of precision


def test_logits_that_are_not_finite_speak_no_answer(folder: Path, samples: list[Sample]) -> None:
    answerer = answerer_of(folder / "model")
    answerer._model.lm_head.weight.data[5, 0] = float("nan")  # type: ignore[operator, union-attr, index]
    with pytest.raises(RunnerError, match="logits that are not finite"):
        answerer.answers(samples)


def test_a_device_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="device 'abacus' is unknown; expected auto, cpu, cuda or cuda:N"):
        open_answerer(folder / "model", AnswererSettings(device="abacus"))
    with pytest.raises(UsageError, match=r"this machine has \d+ CUDA devices"):
        open_answerer(folder / "model", AnswererSettings(device="cuda:99"))


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
    report = evaluate(answerer_of(folder / "model", max_new_tokens=4), samples)
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

    plain, scaled, by_hand = (answerer_of(path, 8) for path in (folder / "model", tmp_path / "scaled", tmp_path / "by hand"))
    assert texts(scaled.answers(samples)) == texts(by_hand.answers(samples)) != texts(plain.answers(samples))
    assert scaled.name == f"{tmp_path / 'scaled'} (weights rounded: int4 in blocks of 32, int8 in blocks of 32)"
    assert plain.name == str(folder / "model")
    assert scaled.digest != plain.digest
