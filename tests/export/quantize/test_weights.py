"""A model's weights as its bundle will have them: names that the graphs know, what is rounded on, and what is kept back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from export_fixtures import StudentGraphs
from tiny_run import TinyRun

from drivekd.errors import DataError, ExportError, UsageError
from drivekd.export.quantize.frames import Frames, _apart, read_frames
from drivekd.export.quantize.matmuls import weight_array, weight_matmuls
from drivekd.export.quantize.weights import by_matmul, quantize_weights
from drivekd.export.settings import plan_from_options
from drivekd.export.source.source import Source, load_source
from drivekd.models import encode_images
from drivekd.quantization.form import Quantized, WeightForm
from drivekd.quantization.layers import weight_of
from drivekd.quantization.linears import linear_layers, matmul_name
from drivekd.sample import Sample

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]
EMBEDDING = WeightForm(8, 32)


@pytest.fixture
def source(family_run: TinyRun) -> Source:
    """One's own: it is spoilt."""
    return load_source(family_run.student, None)


@pytest.fixture
def frames(family_run: TinyRun, source: Source) -> Frames:
    return read_frames(family_run.folder / "train.json", source.processor)


def forms_of(source: Source, *overrides: str) -> dict[str, WeightForm]:
    plan = plan_from_options("int4", overrides)
    widths = {layer: weight_of(linear).shape[1] for layer, linear in linear_layers(source.model).items()}
    return {layer: form for layer, width in widths.items() if (form := plan.form_of(layer, width)) is not None}


def test_layers_have_the_names_and_weights_of_the_graphs(
    family_run: TinyRun, student_graphs: Callable[[TinyRun], StudentGraphs]
) -> None:
    """Every MatMul of a weight is known by name, and holds the layers that it is made of, in order."""
    graphs = student_graphs(family_run)
    layers = linear_layers(graphs.source.model)
    exact = {
        name: Quantized(weight_of(layer), torch.zeros(len(weight_of(layer)), 0), EMBEDDING) for name, layer in layers.items()
    }
    joined = by_matmul(exact)
    seen: set[str] = set()
    for spec in graphs.specs.values():
        for node in weight_matmuls(ir.load(graphs.folder / spec.file).graph):
            name = node.name or ""
            np.testing.assert_array_equal(weight_array(node).T, joined[name].values.detach().numpy())
            seen.add(name)
    assert seen == {matmul_name(layer) for layer in layers}


def test_the_model_computes_with_what_is_returned(source: Source, frames: Frames) -> None:
    forms = forms_of(source)
    embedding = source.model.get_input_embeddings().weight.detach().clone()
    found = quantize_weights(source.model, forms, EMBEDDING, frames, {})
    assert set(found) == set(forms)
    for name, layer in linear_layers(source.model).items():
        assert torch.equal(weight_of(layer), found[name].dequantized()), name
        assert found[name].form == forms[name]
    table = source.model.get_input_embeddings().weight
    assert not torch.equal(table, embedding), "its rows are rounded, too"
    assert float((table - embedding).norm() / embedding.norm()) < 0.01
    assert source.model.lm_head.weight is not table


def test_vision_of_four_bits_is_rounded_by_data_too(family_run: TinyRun, frames: Frames) -> None:
    """Random tiny towers have inputs that are hardly related: nothing is won there, but a tower that is rounded on other inputs
    than its own loses much."""
    batch, outputs = frames.chosen[0], []
    for how in ("exact", "data", "nearest"):
        source = load_source(family_run.student, None)
        if how != "exact":
            quantize_weights(source.model, forms_of(source, "vision=int4"), EMBEDDING, frames if how == "data" else None, {})
        with torch.no_grad():
            outputs.append(encode_images(source.model, frames.collate.pixel_values(batch.images[0], "here")))
    exact, data, nearest = outputs
    assert not torch.equal(data, nearest)
    assert 0 < float((data - exact).norm()) < 1.2 * float((nearest - exact).norm())


def test_trained_scales_are_taken_as_they_are(source: Source) -> None:
    forms = forms_of(source)
    weights = {name: weight_of(layer).clone() for name, layer in linear_layers(source.model).items()}
    scales = {
        name: torch.full((len(weights[name]), -(-weights[name].shape[1] // form.block)), 0.0625) for name, form in forms.items()
    }
    found = quantize_weights(source.model, forms, None, None, scales)
    for name, form in forms.items():
        assert torch.equal(found[name].scales, scales[name])
        expected = (weights[name] / 0.0625).round().clamp(form.low, form.high).to(torch.int8)
        assert torch.equal(found[name].values, expected)


def test_a_weight_that_is_not_finite_is_named(source: Source) -> None:
    layer = linear_layers(source.model)["layers.1.mlp.down_proj"]
    with torch.no_grad():
        layer.weight[2, 3] = float("nan")  # type: ignore[index,operator]
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.down_proj: 1 of \d+ weights are NaN or infinite"):
        quantize_weights(source.model, forms_of(source), EMBEDDING, None, {})


def test_frames_hold_their_questions_and_some_are_kept_back(family_run: TinyRun, source: Source, tmp_path: Path) -> None:
    every = json.loads((family_run.folder / "train.json").read_text())
    shutil.copytree(family_run.folder / "images", tmp_path / "images")
    records = [record for record in every if len(record["images"]) == 1]  # those of two pictures tie all together
    (tmp_path / "train.json").write_text(json.dumps(records))
    found = read_frames(tmp_path / "train.json", source.processor)
    chosen = {path for batch in found.chosen for images in batch.images for path in images}
    kept = {path for sample in found.held_out for path in sample.images}
    assert chosen and kept and not chosen & kept
    assert all(sample.answer for sample in found.held_out)
    assert all(len(images) == 1 for batch in found.chosen for images in batch.images)
    assert {sample.source for batch in found.chosen for sample in batch.samples} < {
        f"{tmp_path / 'train.json'}, record {number + 1}" for number in range(len(records))
    }
    again = read_frames(tmp_path / "train.json", source.processor)
    assert [batch.samples for batch in again.chosen] == [batch.samples for batch in found.chosen]
    one = read_frames(tmp_path / "train.json", source.processor, count=1)
    assert len(one.chosen) == 1


def test_records_that_cannot_be_rounded_on_are_refused(source: Source, family_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataError, match=r"empty\.json: the file holds no records"):
        read_frames(tmp_path / "empty.json", source.processor)
    record = json.loads((family_run.folder / "train.json").read_text())[0]
    (tmp_path / "missing.json").write_text(json.dumps([record | {"images": ["gone.png"]}]))
    with pytest.raises((DataError, UsageError), match=r"missing\.json, record 1: images: no file .*gone\.png"):
        read_frames(tmp_path / "missing.json", source.processor)


def framed(scenes: int, each: int, cameras: int = 1) -> list[list[Sample]]:
    """Frames of so many scenes, dealt as a shuffle would."""
    return [
        [
            Sample(
                "here",
                "planning",
                "?",
                "Brake.",
                tuple(Path(f"{scene}-{number}-{c}.jpg") for c in range(cameras)),
                scene=f"s{scene}",
            )
        ]
        for number in range(each)
        for scene in range(scenes)
    ]


@pytest.mark.parametrize(("scenes", "each"), [(850, 40), (100, 12), (10, 10), (4, 5)])
def test_a_quarter_of_the_scenes_is_kept_back(scenes: int, each: int) -> None:
    kept, rest, kind = _apart(framed(scenes, each))
    told = [{frame[0].scene for frame in part} for part in (kept, rest)]
    assert not told[0] & told[1]
    assert [len(names) for names in told] == [scenes // 4, scenes - scenes // 4]
    assert (len(kept) + len(rest), kind) == (scenes * each, "scenes")


def test_frames_of_one_scene_are_kept_apart_by_their_pictures() -> None:
    frames = framed(1, 8, cameras=2)
    frames[3] = [replace(frames[3][0], images=(frames[4][0].images[0], Path("other.jpg")))]
    kept, rest, kind = _apart(frames)
    assert kind == "frames" and kept and rest
    assert not {path for frame in kept for path in frame[0].images} & {path for frame in rest for path in frame[0].images}
    one = [[replace(frame[0], images=(Path("same.jpg"),))] for frame in frames]
    assert _apart(one)[0] == []
