"""Written graphs against the torch model: both families, both dialects, every way a prompt can be cut into calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_run import FAMILIES, make_tokenizer
from torch import Tensor
from transformers.cache_utils import DynamicCache

from drivekd.errors import UsageError
from drivekd.export import graphs as export_graphs
from drivekd.export.graphs import decoder_graphs, write_graphs
from drivekd.export.graphs_qwen import window_order
from drivekd.export.passes import name_weights
from drivekd.export.rewriting import constant_name
from drivekd.export.shared_weights import write_models
from drivekd.export.source import Source, load_source
from drivekd.images import PatchSettings
from drivekd.models import encode_images, language_model, rotary_positions
from drivekd.models.tiny import TinySize, build_tiny, build_tiny_qwen, write_checkpoint
from drivekd.runtime.kv_cache import past_names, present_names
from drivekd.runtime.manifest import GraphSpec

SIZE = TinySize(vision_layers=2, vision_width=32, language_layers=2, language_width=64, image_size_px=56)  # heads 16 wide
CAMERA_PX = (140, 84)  # 3 x 5 tokens in windows of 2 x 2: four sizes of windows
LIMIT = 1e-4  # of the reference's largest magnitude: DEPLOY section 5; measured 2e-6
PROMPT = 11
CAPACITY = 32

Array = NDArray[Any]
Outputs = tuple[Array, list[Array]]  # logits [B, V], K/V per layer


@dataclass(frozen=True)
class Exported:
    """A family's tiny model, its graphs, and onnxruntime sessions on them by graph name."""

    source: Source
    folder: Path
    specs: dict[str, GraphSpec]
    sessions: dict[str, onnxruntime.InferenceSession]

    @property
    def axes(self) -> int:
        return self.source.info.rotary_axes

    def prompt(self, batch: int = 1, length: int = PROMPT, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, D] and positions [A, B, T]; rows and columns of an image run apart from time."""
        generator = torch.Generator().manual_seed(seed)
        embeds = torch.randn(batch, length, self.source.info.hidden_size, generator=generator)
        positions = torch.arange(length).expand(self.axes, batch, length).clone()
        positions[1:] += torch.randint(0, 4, positions[1:].shape, generator=generator)
        return embeds, positions

    def torch_answer(self, embeds: Tensor, positions: Tensor) -> Outputs:
        """The model's own layers, attention and cache."""
        model: Any = self.source.model
        cache = DynamicCache(config=model.config.text_config)
        with torch.no_grad():
            hidden = language_model(model)(
                inputs_embeds=embeds,
                position_ids=rotary_positions(model, positions),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = model.lm_head(hidden[:, -1])
        return logits.numpy(), [tensor.numpy() for layer in cache.layers for tensor in (layer.keys, layer.values)]

    def empty(self, batch: int = 1, capacity: int = 0) -> list[Array]:
        info = self.source.info
        return [np.zeros((batch, info.num_kv_heads, capacity, info.head_dim), np.float32)] * (2 * info.num_layers)

    def run(self, graph: str, feeds: Mapping[str, Array], past: Sequence[Array]) -> Outputs:
        cache = dict(zip(past_names(self.source.info.num_layers), past, strict=True))
        logits, *present = self.sessions[graph].run(None, {**feeds, **cache})
        return logits, present

    def concat(self, embeds: Tensor, positions: Tensor, past: Sequence[Array], mask: Array | None = None) -> Outputs:
        if mask is None:
            mask = np.ones((len(embeds), past[0].shape[2] + embeds.shape[1]), np.int64)
        return self.run("decoder.concat", {**self._text(embeds, positions, True), "attention_mask": mask}, past)

    def gqa(self, embeds: Tensor, positions: Tensor, past: Sequence[Array], lengths: Sequence[int]) -> Outputs:
        """lengths: each row's tokens after this call."""
        read = {"seqlens_k": np.asarray(lengths, np.int32) - 1, "total_sequence_length": np.asarray([max(lengths)], np.int32)}
        return self.run("decoder.gqa", {**self._text(embeds, positions, self.axes > 1), **read}, past)

    def _text(self, embeds: Tensor, positions: Tensor, with_positions: bool) -> dict[str, Array]:
        rows = (positions if self.axes > 1 else positions[0]).numpy()
        return {"inputs_embeds": embeds.numpy(), **({"position_ids": rows} if with_positions else {})}


def write_lively(folder: Path, family: str, size: TinySize = SIZE) -> Path:
    """A checkpoint whose attention matters: at its usual initialisation it is uniform to 1e-4, and biases are zero."""
    tokenizer = make_tokenizer(family)
    model = (build_tiny if family == "internvl" else build_tiny_qwen)(size, tokenizer, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
            elif "q_proj" in name or "k_proj" in name or "qkv" in name:
                parameter.mul_(4.0)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    write_checkpoint(folder, model, tokenizer, camera_size_px=CAMERA_PX)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _single_thread() -> Iterator[None]:
    """conftest's one_thread, for a whole module: tiny models are fastest on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source = load_source(write_lively(tmp_path_factory.mktemp("checkpoint"), request.param), None)
    folder = tmp_path_factory.mktemp("graphs")
    specs = write_graphs(source, folder)
    return Exported(source, folder, specs, {name: _session(folder / spec.file) for name, spec in specs.items()})


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


def assert_close(found: Array, expected: Array, what: str = "") -> None:
    assert found.shape == expected.shape, what
    error = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    assert error <= LIMIT, f"{what}: {error:.1e}"


def assert_same(found: Outputs, expected: Outputs) -> None:
    """Logits and K/V; a buffer's columns behind the last token are nobody's."""
    assert_close(found[0], expected[0], "logits")
    for index, (got, want) in enumerate(zip(found[1], expected[1], strict=True)):
        assert_close(got[:, :, : want.shape[2]], want, f"K/V {index}")


def test_vision_equals_the_family_s_own(exported: Exported) -> None:
    count = 3 if exported.specs["vision"].inputs[0].dims[0] == "images" else 1
    pixel_values = torch.randn(count, *exported.source.images.pixel_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = encode_images(exported.source.model, pixel_values).numpy()
    for images in sorted({1, count}):
        (found,) = exported.sessions["vision"].run(None, {"pixel_values": pixel_values[:images].numpy()})
        assert_close(found, expected[:images])


def test_prefill_and_chunks_in_concat(exported: Exported) -> None:
    embeds, positions = exported.prompt()
    expected = exported.torch_answer(embeds, positions)
    assert_same(exported.concat(embeds, positions, exported.empty()), expected)
    past = exported.empty()
    for start, end in ((0, 1), (1, 6), (6, PROMPT)):
        found = exported.concat(embeds[:, start:end], positions[:, :, start:end], past)
        past = found[1]
    assert_same(found, expected)


@pytest.mark.parametrize("capacity", [0, PROMPT, CAPACITY])
def test_prefill_in_gqa(exported: Exported, capacity: int) -> None:
    embeds, positions = exported.prompt()
    past = exported.empty(capacity=capacity)
    assert_same(exported.gqa(embeds, positions, past, [PROMPT]), exported.torch_answer(embeds, positions))


def test_chunks_and_steps_in_gqa(exported: Exported) -> None:
    embeds, positions = exported.prompt()
    expected = exported.torch_answer(embeds, positions)
    past = exported.empty(capacity=CAPACITY)
    for start, end in ((0, 4), (4, 8), (8, 9), (9, 10), (10, PROMPT)):
        found = exported.gqa(embeds[:, start:end], positions[:, :, start:end], past, [end])
        past = found[1]
    assert_same(found, expected)


def test_a_long_past(exported: Exported) -> None:
    embeds, positions = exported.prompt(length=300)
    expected = exported.torch_answer(embeds, positions)
    _, past = exported.concat(embeds[:, :-1], positions[:, :, :-1], exported.empty())
    assert_same(exported.concat(embeds[:, -1:], positions[:, :, -1:], past), expected)
    _, past = exported.gqa(embeds[:, :-1], positions[:, :, :-1], exported.empty(capacity=512), [299])
    assert_same(exported.gqa(embeds[:, -1:], positions[:, :, -1:], past, [300]), expected)


def test_left_padding_in_concat(exported: Exported) -> None:
    """A row's answer does not depend on the padding before it, in the prompt and one step later."""
    lengths = (PROMPT, 4)
    embeds, positions = exported.prompt(batch=2, length=PROMPT + 1)
    padded, moved = torch.zeros(2, PROMPT + 1, embeds.shape[2]), torch.zeros_like(positions)
    mask = np.zeros((2, PROMPT + 1), np.int64)
    for row, length in enumerate(lengths):
        start = PROMPT - length
        padded[row, start:], moved[:, row, start:] = embeds[row, : length + 1], positions[:, row, : length + 1]
        mask[row, start:] = 1
    logits, past = exported.concat(padded[:, :PROMPT], moved[:, :, :PROMPT], exported.empty(2), mask[:, :PROMPT])
    after, _ = exported.concat(padded[:, PROMPT:], moved[:, :, PROMPT:], past, mask)
    for row, length in enumerate(lengths):
        alone = embeds[row : row + 1], positions[:, row : row + 1]
        assert_close(logits[row : row + 1], exported.torch_answer(alone[0][:, :length], alone[1][:, :, :length])[0])
        assert_close(after[row : row + 1], exported.torch_answer(alone[0][:, : length + 1], alone[1][:, :, : length + 1])[0])


def branched(exported: Exported, lengths: Sequence[int]) -> tuple[list[Array], Tensor, Tensor, list[Outputs]]:
    """Rows of different lengths read one by one, put side by side in one buffer; each row's next token, and torch's answers."""
    rows, steps, expected = [], [], []
    for row, length in enumerate(lengths):
        embeds, positions = exported.prompt(length=length + 1, seed=row)
        _, past = exported.gqa(embeds[:, :-1], positions[:, :, :-1], exported.empty(capacity=CAPACITY), [length])
        rows.append(past)
        steps.append((embeds[:, -1:], positions[:, :, -1:]))
        expected.append(exported.torch_answer(embeds, positions))
    buffers = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    return buffers, torch.cat([step[0] for step in steps]), torch.cat([step[1] for step in steps], dim=1), expected


def test_three_rows_step_together_in_gqa(exported: Exported) -> None:
    lengths = (5, PROMPT, 8)
    buffers, embeds, positions, expected = branched(exported, lengths)
    logits, present = exported.gqa(embeds, positions, buffers, [length + 1 for length in lengths])
    for row, answer in enumerate(expected):
        assert_same((logits[row : row + 1], [part[row : row + 1] for part in present]), answer)


def test_narrow_heads_turn_outside_of_gqa(tmp_path: Path) -> None:
    """Heads 8 wide, which onnxruntime does not rotate itself: chunks, and rows of different lengths."""
    source = load_source(write_lively(tmp_path / "model", "internvl", dataclasses.replace(SIZE, attention_heads=8)), None)
    assert source.info.head_dim == 8
    write_models({"narrow.onnx": decoder_graphs(source, ["gqa"])["gqa"]}, tmp_path, "decoder.data")
    exported = Exported(source, tmp_path, {}, {"decoder.gqa": _session(tmp_path / "narrow.onnx")})
    test_chunks_and_steps_in_gqa(exported)
    test_three_rows_step_together_in_gqa(exported)


def test_gqa_writes_in_place(exported: Exported) -> None:
    """Past and present are one OrtValue: same answers, and the buffers have the new column."""
    lengths = [PROMPT]
    buffers, embeds, positions, expected = branched(exported, lengths)
    apart = exported.gqa(embeds, positions, buffers, [PROMPT + 1])
    session, info = exported.sessions["decoder.gqa"], exported.source.info
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(buffer.copy()) for buffer in buffers]
    feeds = {**exported._text(embeds, positions, exported.axes > 1), "seqlens_k": np.asarray([PROMPT], np.int32)}
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


def test_inputs_outputs_and_dims_are_the_specs(exported: Exported) -> None:
    for name, spec in exported.specs.items():
        session = exported.sessions[name]
        stated = [(tensor.name, list(tensor.dims)) for tensor in (*spec.inputs, *spec.outputs)]
        assert [(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs())] == stated
    inputs = {name: [tensor.name for tensor in spec.inputs if "past" not in tensor.name] for name, spec in exported.specs.items()}
    positions = ["position_ids"] if exported.axes > 1 else []
    assert inputs["decoder.concat"] == ["inputs_embeds", "attention_mask", "position_ids"]
    assert inputs["decoder.gqa"] == ["inputs_embeds", "seqlens_k", "total_sequence_length", *positions]


def test_versions_that_a_car_reads(exported: Exported) -> None:
    for name, spec in exported.specs.items():
        model = ir.load(exported.folder / spec.file)
        assert model.ir_version == 10
        assert model.opset_imports == {"": 18} | ({"com.microsoft": 1} if name == "decoder.gqa" else {})


def matmuls(model: ir.Model) -> dict[str, ir.Node]:
    return {
        node.name or "": node
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer()
    }


@pytest.mark.parametrize("dialect", ["concat", "gqa"])
def test_quantizers_find_every_matmul(exported: Exported, dialect: str) -> None:
    model = ir.load(exported.folder / exported.specs[f"decoder.{dialect}"].file)
    layers = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    expected = [f"layers.{number}.{layer}" for number in range(SIZE.language_layers) for layer in layers]
    assert list(matmuls(model)) == [*expected, "lm_head"]
    assert {node.op_type for node in model.graph} & {"Gemm", "Conv"} == set()
    for name, node in matmuls(model).items():
        weight = node.inputs[1]
        assert weight is not None
        assert weight.name == f"{name}.weight"
        assert weight.shape is not None
        assert weight.const_value is not None
    info = exported.source.info
    assert list(model.graph.initializers["lm_head.weight"].shape or ()) == [info.hidden_size, info.vocab_size]


def test_vision_matmuls_and_layers_have_their_names(exported: Exported) -> None:
    model = ir.load(exported.folder / "vision.onnx")
    prefixes = {name.rpartition(".")[0] for name in matmuls(model)}
    assert {f"vision.layers.{number}.mlp" for number in range(SIZE.vision_layers)} <= prefixes
    assert all(name.startswith(("vision.layers.", "projector.", "vision.patch_embed")) for name in matmuls(model))
    assert "Gemm" not in {node.op_type for node in model.graph}
    values = {value.name for node in model.graph for value in node.outputs}
    assert {f"vision.layers.{number}.output" for number in range(SIZE.vision_layers)} <= values


@pytest.mark.parametrize("dialect", ["concat", "gqa"])
def test_layer_outputs_are_torch_s(exported: Exported, dialect: str, tmp_path: Path) -> None:
    """Made outputs of the graph, the values layers.N.output are what torch's layers give."""
    spec = exported.specs[f"decoder.{dialect}"]
    model = ir.load(exported.folder / spec.file)
    names = [f"layers.{number}.output" for number in range(SIZE.language_layers)]
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(values[name])
    ir.save(model, exported.folder / f"probed.{dialect}.onnx")
    probed = dataclasses.replace(exported, sessions={spec.file[:-5]: _session(exported.folder / f"probed.{dialect}.onnx")})
    embeds, positions = exported.prompt()
    outputs = (
        probed.concat(embeds, positions, exported.empty())
        if dialect == "concat"
        else probed.gqa(embeds, positions, exported.empty(capacity=CAPACITY), [PROMPT])
    )
    seen: list[Tensor] = []
    layers: Any = language_model(exported.source.model).layers
    hooks = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for layer in layers]
    exported.torch_answer(embeds, positions)
    for hook in hooks:
        hook.remove()
    for found, expected in zip(outputs[1][-len(names) :], seen, strict=True):
        assert_close(found, expected.numpy())


def test_dialects_share_their_weights(exported: Exported) -> None:
    files = {name: spec.data_file for name, spec in exported.specs.items()}
    assert files == {"vision": None, "decoder.gqa": "decoder.data", "decoder.concat": "decoder.data"}
    used = sum(tensor.nbytes for tensor in _externals(exported, "concat"))
    assert {tensor.offset for tensor in _externals(exported, "gqa")} == {
        tensor.offset for tensor in _externals(exported, "concat")
    }
    assert (exported.folder / "decoder.data").stat().st_size < used + 4096 * len(_externals(exported, "concat"))


def _externals(exported: Exported, dialect: str) -> list[ir.ExternalTensor]:
    model = ir.load(exported.folder / exported.specs[f"decoder.{dialect}"].file)
    return [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]


def test_bytes_are_the_same_in_any_folder_and_tell_none(exported: Exported, tmp_path: Path) -> None:
    """And the model is as it was: exporting swaps norms and attention for a while."""
    model: Any = exported.source.model
    hooks = [len(module._forward_hooks) for module in model.modules()]  # transformers has some of its own
    again = tmp_path / "elsewhere"
    again.mkdir()
    write_graphs(exported.source, again)
    for path in sorted(again.iterdir()):
        assert path.read_bytes() == (exported.folder / path.name).read_bytes(), path.name
        for trace in (str(exported.folder), "site-packages", "drivekd/export", "stack_trace"):
            assert trace.encode() not in path.read_bytes()
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


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
def test_a_wrong_pass_is_caught(exported: Exported, fault: Callable[[ir.Model], None]) -> None:
    """These comparisons see a graph that is wrong."""
    model = ir.load(exported.folder / "decoder.concat.onnx")
    fault(model)
    ir.save(model, exported.folder / "broken.onnx")
    broken = dataclasses.replace(exported, sessions={"decoder.concat": _session(exported.folder / "broken.onnx")})
    embeds, positions = exported.prompt()
    with pytest.raises(AssertionError, match="logits"):
        assert_same(broken.concat(embeds, positions, exported.empty()), exported.torch_answer(embeds, positions))


def test_an_unknown_dialect_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dialect 'std24' is unknown; this version has: gqa, concat"):
        write_graphs(exported.source, tmp_path, ["concat", "std24"])
    assert list(tmp_path.iterdir()) == []


def test_large_weights_lie_beside_the_graph(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = {name: ir.load(exported.folder / spec.file) for name, spec in exported.specs.items()}
    monkeypatch.setattr(export_graphs, "vision_graph", lambda *_: finished["vision"])
    monkeypatch.setattr(export_graphs, "decoder_graphs", lambda *_: {"concat": finished["decoder.concat"]})
    monkeypatch.setattr(export_graphs, "INLINE_LIMIT_BYTES", 1000)
    specs = write_graphs(exported.source, tmp_path, ["concat"])
    assert {name: spec.data_file for name, spec in specs.items()} == {"vision": "vision.data", "decoder.concat": "decoder.data"}
    files = ["decoder.concat.onnx", "decoder.data", "vision.data", "vision.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    moved = dataclasses.replace(exported, sessions={"decoder.concat": _session(tmp_path / "decoder.concat.onnx")})
    embeds, positions = exported.prompt()
    assert_same(moved.concat(embeds, positions, exported.empty()), exported.torch_answer(embeds, positions))


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


def test_weight_names_need_no_second_pass(exported: Exported) -> None:
    for spec in exported.specs.values():
        assert not name_weights(ir.load(exported.folder / spec.file))[1]
