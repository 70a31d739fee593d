"""Written graphs against the torch model: both families, both dialects, every way a prompt can be cut into calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from graph_cases import (
    CAPACITY,
    PROMPT,
    SIZE,
    Array,
    Outputs,
    WrittenGraphs,
    assert_close,
    assert_same,
    open_session,
    write_lively,
)
from torch import Tensor

from drivekd.export.graphs.graphs import decoder_graphs
from drivekd.export.graphs.shared_weights import write_models
from drivekd.export.lowering.nodes import constant_name
from drivekd.export.source.source import load_source
from drivekd.images import PatchSettings
from drivekd.models import encode_images, language_model
from drivekd.models.qwen2_5_vl import window_order
from drivekd.runtime.bundle.graph_contract import past_names, present_names

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("module_on_one_thread")]


def test_vision_equals_the_family_s_own(written: WrittenGraphs) -> None:
    count = 3 if written.specs["vision"].inputs[0].dims[0] == "images" else 1
    pixel_values = torch.randn(count, *written.source.images.pixel_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = encode_images(written.source.model, pixel_values).numpy()
    for images in sorted({1, count}):
        (found,) = written.sessions["vision"].run(None, {"pixel_values": pixel_values[:images].numpy()})
        assert_close(found, expected[:images])


def test_prefill_and_chunks_in_concat(written: WrittenGraphs) -> None:
    embeds, positions = written.prompt()
    expected = written.torch_answer(embeds, positions)
    assert_same(written.concat(embeds, positions, written.empty()), expected)
    past = written.empty()
    for start, end in ((0, 1), (1, 6), (6, PROMPT)):
        found = written.concat(embeds[:, start:end], positions[:, :, start:end], past)
        past = found[1]
    assert_same(found, expected)


@pytest.mark.parametrize("capacity", [0, PROMPT, CAPACITY])
def test_prefill_in_gqa(written: WrittenGraphs, capacity: int) -> None:
    embeds, positions = written.prompt()
    past = written.empty(capacity=capacity)
    assert_same(written.gqa(embeds, positions, past, [PROMPT]), written.torch_answer(embeds, positions))


def test_chunks_and_steps_in_gqa(written: WrittenGraphs) -> None:
    embeds, positions = written.prompt()
    expected = written.torch_answer(embeds, positions)
    past = written.empty(capacity=CAPACITY)
    for start, end in ((0, 4), (4, 8), (8, 9), (9, 10), (10, PROMPT)):
        found = written.gqa(embeds[:, start:end], positions[:, :, start:end], past, [end])
        past = found[1]
    assert_same(found, expected)


def test_a_long_past(written: WrittenGraphs) -> None:
    embeds, positions = written.prompt(length=300)
    expected = written.torch_answer(embeds, positions)
    _, past = written.concat(embeds[:, :-1], positions[:, :, :-1], written.empty())
    assert_same(written.concat(embeds[:, -1:], positions[:, :, -1:], past), expected)
    _, past = written.gqa(embeds[:, :-1], positions[:, :, :-1], written.empty(capacity=512), [299])
    assert_same(written.gqa(embeds[:, -1:], positions[:, :, -1:], past, [300]), expected)


def test_left_padding_in_concat(written: WrittenGraphs) -> None:
    """A row's answer does not depend on the padding before it, in the prompt and one step later."""
    lengths = (PROMPT, 4)
    embeds, positions = written.prompt(batch=2, length=PROMPT + 1)
    padded, moved = torch.zeros(2, PROMPT + 1, embeds.shape[2]), torch.zeros_like(positions)
    mask = np.zeros((2, PROMPT + 1), np.int64)
    for row, length in enumerate(lengths):
        start = PROMPT - length
        padded[row, start:], moved[:, row, start:] = embeds[row, : length + 1], positions[:, row, : length + 1]
        mask[row, start:] = 1
    logits, past = written.concat(padded[:, :PROMPT], moved[:, :, :PROMPT], written.empty(2), mask[:, :PROMPT])
    after, _ = written.concat(padded[:, PROMPT:], moved[:, :, PROMPT:], past, mask)
    for row, length in enumerate(lengths):
        alone = embeds[row : row + 1], positions[:, row : row + 1]
        assert_close(logits[row : row + 1], written.torch_answer(alone[0][:, :length], alone[1][:, :, :length])[0])
        assert_close(after[row : row + 1], written.torch_answer(alone[0][:, : length + 1], alone[1][:, :, : length + 1])[0])


def branched(written: WrittenGraphs, lengths: Sequence[int]) -> tuple[list[Array], Tensor, Tensor, list[Outputs]]:
    """Rows of different lengths read one by one, put side by side in one buffer; each row's next token, and torch's answers."""
    rows, steps, expected = [], [], []
    for row, length in enumerate(lengths):
        embeds, positions = written.prompt(length=length + 1, seed=row)
        _, past = written.gqa(embeds[:, :-1], positions[:, :, :-1], written.empty(capacity=CAPACITY), [length])
        rows.append(past)
        steps.append((embeds[:, -1:], positions[:, :, -1:]))
        expected.append(written.torch_answer(embeds, positions))
    buffers = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    return buffers, torch.cat([step[0] for step in steps]), torch.cat([step[1] for step in steps], dim=1), expected


def test_three_rows_step_together_in_gqa(written: WrittenGraphs) -> None:
    lengths = (5, PROMPT, 8)
    buffers, embeds, positions, expected = branched(written, lengths)
    logits, present = written.gqa(embeds, positions, buffers, [length + 1 for length in lengths])
    for row, answer in enumerate(expected):
        assert_same((logits[row : row + 1], [part[row : row + 1] for part in present]), answer)


def test_narrow_heads_turn_outside_of_gqa(tmp_path: Path) -> None:
    """Heads 8 wide, which onnxruntime does not rotate itself: chunks, and rows of different lengths."""
    source = load_source(write_lively(tmp_path / "model", "internvl", dataclasses.replace(SIZE, attention_heads=8)), None)
    assert source.info.head_dim == 8
    write_models({"narrow.onnx": decoder_graphs(source, ["gqa"])["gqa"]}, tmp_path, "decoder.data")
    written = WrittenGraphs(source, tmp_path, {}, {"decoder.gqa": open_session(tmp_path / "narrow.onnx")})
    test_chunks_and_steps_in_gqa(written)
    test_three_rows_step_together_in_gqa(written)


def test_gqa_writes_in_place(written: WrittenGraphs) -> None:
    """Past and present are one OrtValue: same answers, and the buffers have the new column."""
    lengths = [PROMPT]
    buffers, embeds, positions, expected = branched(written, lengths)
    apart = written.gqa(embeds, positions, buffers, [PROMPT + 1])
    session, info = written.sessions["decoder.gqa"], written.source.info
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(buffer.copy()) for buffer in buffers]
    feeds = {**written._text(embeds, positions, written.axes > 1), "seqlens_k": np.asarray([PROMPT], np.int32)}
    binding = session.io_binding()
    for name, array in {**feeds, "total_sequence_length": np.asarray([PROMPT + 1], np.int32)}.items():
        binding.bind_cpu_input(name, array)
    for past, present, value in zip(past_names(info.num_layers), present_names(info.num_layers), values, strict=True):
        binding.bind_ortvalue_input(past, value)
        binding.bind_ortvalue_output(present, value)
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[-1].numpy(), apart[0])
    assert_same((apart[0], [value.numpy() for value in values]), expected[0])
    assert not np.array_equal(values[0].numpy(), buffers[0])


@pytest.mark.parametrize("dialect", ["concat", "gqa"])
def test_layer_outputs_are_torch_s(written: WrittenGraphs, dialect: str, tmp_path: Path) -> None:
    """Made outputs of the graph, the values layers.N.output are what torch's layers give."""
    spec = written.specs[f"decoder.{dialect}"]
    model = ir.load(written.folder / spec.file)
    names = [f"layers.{number}.output" for number in range(SIZE.language_layers)]
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(values[name])
    ir.save(model, written.folder / f"probed.{dialect}.onnx")
    probed = dataclasses.replace(written, sessions={spec.file[:-5]: open_session(written.folder / f"probed.{dialect}.onnx")})
    embeds, positions = written.prompt()
    outputs = (
        probed.concat(embeds, positions, written.empty())
        if dialect == "concat"
        else probed.gqa(embeds, positions, written.empty(capacity=CAPACITY), [PROMPT])
    )
    seen: list[Tensor] = []
    layers: Any = language_model(written.source.model).layers
    hooks = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for layer in layers]
    written.torch_answer(embeds, positions)
    for hook in hooks:
        hook.remove()
    for found, expected in zip(outputs[1][-len(names) :], seen, strict=True):
        assert_close(found, expected.numpy())


def _wrong_rotation(model: ir.Model) -> None:
    """What a lowering that confuses the halves gives."""
    for node in model.graph:
        if (node.name or "").endswith(".rotary_sub"):
            node.op_type = "Add"


def _no_mask(model: ir.Model) -> None:
    """A prompt that sees its future."""
    for node in model.graph:
        if (node.name or "").endswith(".masked"):
            assert node.inputs[0] is not None
            node.outputs[0].replace_all_uses_with(node.inputs[0])


def _scale_of_another_head(model: ir.Model) -> None:
    (name,) = (name for name in model.graph.initializers if name == constant_name(np.asarray(0.25, np.float32)))
    model.graph.initializers[name].const_value = ir.tensor(np.asarray(0.125, np.float32), name=name)


@pytest.mark.parametrize("fault", [_wrong_rotation, _no_mask, _scale_of_another_head])
def test_a_wrong_pass_is_caught(written: WrittenGraphs, fault: Callable[[ir.Model], None]) -> None:
    """These comparisons see a graph that is wrong."""
    model = ir.load(written.folder / "decoder.concat.onnx")
    fault(model)
    ir.save(model, written.folder / "broken.onnx")
    broken = dataclasses.replace(written, sessions={"decoder.concat": open_session(written.folder / "broken.onnx")})
    embeds, positions = written.prompt()
    with pytest.raises(AssertionError, match="logits"):
        assert_same(broken.concat(embeds, positions, written.empty()), written.torch_answer(embeds, positions))


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 7), (12, 21)])
def test_windows_lie_together_whatever_the_image(grid: tuple[int, int]) -> None:
    """grid: rows and columns of tokens; 4 x 4 is divided by windows of 2 x 2 without a rest."""
    rows, columns = grid
    visual = SimpleNamespace(spatial_merge_size=2, window_size=56, patch_size=14)  # windows of 2 x 2 tokens
    order, groups = window_order(visual, PatchSettings(columns * 28, rows * 28))
    assert sorted(order.tolist()) == list(range(rows * columns))
    lengths = [length // 4 for count, length in groups for _ in range(count)]  # a token is four patches
    assert lengths == sorted(lengths, reverse=True)
    assert len(groups) == len(set(lengths)), "one batch a size"
    windows = {(token // columns // 2, token % columns // 2) for token in range(rows * columns)}
    found = [{(t // columns // 2, t % columns // 2) for t in part.tolist()} for part in order.split(lengths)]
    assert all(len(part) == 1 for part in found), "no window is mixed with another"
    assert set().union(*found) == windows
    assert len(found) == len(windows)
