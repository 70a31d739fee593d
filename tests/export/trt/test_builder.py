"""Vision and decoder really compile with TensorRT-RTX, ahead of time and without a GPU; what must be refused is.

That an engine compiles says that parser and compiler take the graph for this hardware. It is not run here, nor is TensorRT.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import quantized_graphs as made
from export_fixtures import StudentGraphs
from onnx import TensorProto, helper, numpy_helper
from small_bundle import DATA_BYTES, DECODER, HEAD_WEIGHT, VISION, decoder_model, write_small_bundle
from tiny_run import TinyRun

from drivekd.errors import BundleError, ExportError
from drivekd.export.trt.builder import BuildSettings, BuiltEngine, build_engine, load_api
from drivekd.export.trt.engines import compile_ahead, engines_from_bundle
from drivekd.export.trt.profiles import Limits, Profile, decoder_profiles, vision_profiles
from drivekd.export.trt.sources import EngineSource, engine_sources
from drivekd.runtime import read_bundle
from drivekd.runtime.bundle.engine_record import engine_platform, verify_engine
from drivekd.runtime.bundle.manifest import GraphSpec, TensorSpec

pytestmark = [
    pytest.mark.numerics,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT-RTX: drivekd[rtx]"),
]

AMPERE, ADA = 86, 89
LIMITS = Limits(images=2, branches=3, prompt=64, context=128)


@pytest.fixture(scope="module")
def api() -> ModuleType:
    return load_api("tensorrt_rtx")


def source_of(graph: str, spec: GraphSpec, folder: Path) -> EngineSource:
    weights = None if spec.data_file is None else (folder / spec.data_file).read_bytes()
    profiles = vision_profiles(spec, LIMITS) if graph == "vision" else decoder_profiles(spec, LIMITS)
    return EngineSource(graph.split(".")[0], graph, spec, (folder / spec.file).read_bytes(), weights, profiles)


def compiled(api: ModuleType, source: EngineSource, folder: Path, capability: int = AMPERE, **settings: Any) -> BuiltEngine:
    return build_engine(api, source, BuildSettings(capability), folder=folder, on_line=lambda line: None, **settings)


# --- what compiles --------------------------------------------------------------------------------------------------


PLANS: list[dict[str, Any]] = [
    {"precision": "fp32"},
    {"precision": "fp16"},
    {"precision": "int8"},
    {"precision": "int8", "activations": "fp16"},
    {"precision": "int8", "int8_inputs": True},
    {"precision": "int4"},
    {"precision": "int4", "activations": "fp16"},
    {"precision": "int4", "int8": ("lm_head",)},
]
# TensorRT-RTX 1.7 ends in "CHECK(is_value()) failed" on the tiny tower's two products of one 32-wide input; of 1280 it does not
ODD = {"qwen2_5_vl": ("vision.layers.*.mlp.gate_proj",)}


@pytest.mark.parametrize("settings", PLANS, ids=str)
def test_every_precision_compiles(
    api: ModuleType,
    family_run: TinyRun,
    student_graphs: Callable[[TinyRun], StudentGraphs],
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    """Both families' graphs, as they are exported."""
    from drivekd.export.quantize.convert import GraphPlan, convert

    odd = settings["precision"] == "int8" and not settings.get("int8_inputs")
    plan = GraphPlan(**settings, exclude=ODD.get(student_graphs(family_run).source.info.family, ()) if odd else ())
    folder, specs = student_graphs(family_run).folder, student_graphs(family_run).specs
    for graph in ("vision", "decoder.concat"):
        spec = specs[graph]
        calibration = any_calibration(folder / spec.file) if plan.int8_inputs else None
        quantized = convert(spec, folder, tmp_path, plan, calibration=calibration)
        built = compiled(api, source_of(graph, quantized, tmp_path), tmp_path)
        assert len(built.data) > len((tmp_path / quantized.file).read_bytes()) / 4
        assert built.timing_cache == b""


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_gate_and_up_of_published_widths_compile(api: ModuleType, tmp_path: Path, precision: str) -> None:
    """Qwen2.5-VL's tower: 3,420 inputs of down_proj are no whole blocks."""
    from drivekd.export.quantize.convert import GraphPlan, apply_plan

    x, rng = made.value("pixel_values", 1, 64, 1280), np.random.default_rng(0)
    wide = [rng.normal(size=(1280, 3420)).astype(np.float32) / 36 for _ in range(2)]
    gate, up = (made.matmul(f"{name}_proj", x, weight) for name, weight in zip(("gate", "up"), wide, strict=True))
    opened = ir.node("Sigmoid", gate.outputs, name="sigmoid")
    product = ir.node("Mul", [*opened.outputs, *up.outputs], name="product")
    down = made.matmul("down_proj", product.outputs[0], wide[0].T.copy())
    opened.outputs[0].name, product.outputs[0].name, down.outputs[0].name = "sigmoid.value", "product.value", "image_embeds"
    model = made.graph([x], down.outputs, [gate, up, opened, product, down])
    down.outputs[0].shape = ir.Shape([1, 64, 1280])
    assert apply_plan(model, GraphPlan(precision)) == ()
    tensors = (TensorSpec(name, "float32", (1, 64, 1280)) for name in ("pixel_values", "image_embeds"))
    spec = GraphSpec("vision.onnx", None, *((tensor,) for tensor in tensors), 0.1)
    source = EngineSource("vision", "vision", spec, ir.to_proto(model).SerializeToString(), None, ())
    assert compiled(api, source, tmp_path).data


def any_calibration(path: Path) -> Any:
    """Activations of up to 3: scales decide numbers, not whether it compiles."""
    import onnx_ir as ir

    from drivekd.export.quantize.matmuls import weight_array, weight_matmuls
    from drivekd.export.quantize.ranges import ActivationRange, Calibration

    nodes = weight_matmuls(ir.load(path).graph)
    sizes = {node.name or "": len(weight_array(node)) for node in nodes}
    threes = {name: np.full(size, 3.0, np.float32) for name, size in sizes.items()}
    return Calibration({name: ActivationRange(largest, largest) for name, largest in threes.items()})


def test_a_bundle_is_compiled_for_both_gpus_and_read_back(tmp_path: Path, api: ModuleType) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")  # its decoder's weights lie beside the graph
    lines: list[str] = []
    rows = compile_ahead(bundle, on_line=lines.append)
    assert [row.engine for row in rows] == [f"rtx-sm{sm}/{engine}" for sm in (AMPERE, ADA) for engine in ("vision", "decoder")]
    assert all(row.bytes > 1000 and row.peak_memory_bytes > 1e6 for row in rows)
    assert sum("building takes about" in line for line in lines) == 4
    verified = read_bundle(bundle)
    for sm in (AMPERE, ADA):
        found = verify_engine(verified, f"rtx-sm{sm}", here=engine_platform("tensorrt_rtx", api.__version__, sm, "any"))
        assert set(found.record.engines["decoder"].profiles) == {"prefill", "decode"}
        assert [len(found.engine(name)) for name in ("vision", "decoder")] == [
            row.bytes for row in rows if row.engine.startswith(f"rtx-sm{sm}/")
        ]
    here = engine_platform("tensorrt_rtx", api.__version__, ADA, "any")
    with pytest.raises(BundleError, match="compute capability SM 86, this machine has SM 89"):
        verify_engine(verified, "rtx-sm86", here=here)


# --- what must not --------------------------------------------------------------------------------------------------


def source_of_nodes(nodes: list[Any], initializers: list[Any], dims: tuple[int | str, ...] = ("batch", 64)) -> EngineSource:
    """x -> y, both float16 with these dims, batch 1 to 4."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, list(dims)) for name in "xy")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], initializers), ir_version=10, opset_imports=opsets)
    spec = GraphSpec("g.onnx", None, *((TensorSpec(tensor, "float16", dims),) for tensor in "xy"), atol=0.0)
    one, two, four = (tuple(batch if isinstance(dim, str) else dim for dim in dims) for batch in (1, 2, 4))
    profile = Profile("any", {"x": (one, two, four)})
    return EngineSource("g", "g", spec, model.SerializeToString(), None, (profile,))


def fp8_source() -> EngineSource:
    ones = np.full(64 * 64, 0x38, np.uint8).tobytes()  # 1.0 in E4M3
    weight = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [64, 64], ones, raw=True)
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return source_of_nodes(nodes, [weight, zero, numpy_helper.from_array(np.float16(1), "scale")])


def test_fp8_is_refused_where_the_gpu_has_none(api: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot compile g\.onnx: .*sm86.*fp8"):
        compiled(api, fp8_source(), tmp_path, AMPERE)
    compiled(api, fp8_source(), tmp_path, ADA)  # the graph is right: the hardware decides


def test_an_operator_of_onnxruntimes_own_is_refused_by_name(api: ModuleType, tmp_path: Path) -> None:
    """The gqa dialect's attention. TensorRT-RTX knows its name and wants a plugin that it does not have."""
    inputs = ["x", "x", "x", "cache", "cache", "length", "total"]
    sizes = {"num_heads": 1, "kv_num_heads": 1, "scale": 0.125}
    node = helper.make_node("GroupQueryAttention", inputs, ["y", "k", "v"], "layers.0.attention", domain="com.microsoft", **sizes)
    cache = numpy_helper.from_array(np.zeros((1, 1, 8, 64), np.float16), "cache")
    lengths = [numpy_helper.from_array(np.zeros(1, np.int32), name) for name in ("length", "total")]
    source = source_of_nodes([node], [cache, *lengths], ("batch", 1, 64))
    with pytest.raises(ExportError, match=r"cannot parse g\.onnx: node layers\.0\.attention \(GroupQueryAttention\): .*plugin"):
        compiled(api, source, tmp_path)


def test_the_gqa_dialect_is_refused(api: ModuleType, tmp_path: Path) -> None:
    """A bundle without the concat dialect has no decoder that TensorRT could read."""
    bundle = read_bundle(write_small_bundle(tmp_path / "bundle"))
    graphs = {"vision": VISION, "decoder.gqa": DECODER}
    lacking = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, graphs=graphs))
    with pytest.raises(BundleError, match=r"needs the graph 'decoder\.concat', this bundle has vision, decoder\.gqa"):
        engine_sources(lacking)


def small_source(tmp_path: Path) -> EngineSource:
    bundle = read_bundle(write_small_bundle(tmp_path / "bundle"))
    files = bundle.files
    return EngineSource(
        "decoder", "decoder.concat", DECODER, files[DECODER.file], files["decoder.data"], decoder_profiles(DECODER, LIMITS)
    )


def test_a_missing_profile_is_refused(api: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no optimization profile has been defined"):
        compiled(api, dataclasses.replace(small_source(tmp_path), profiles=()), tmp_path)


def test_a_profile_that_forgets_an_input_is_refused(api: ModuleType, tmp_path: Path) -> None:
    source = small_source(tmp_path)
    shapes = {name: shape for name, shape in source.profiles[0].shapes.items() if name != "attention_mask"}
    with pytest.raises(ExportError, match="attention_mask is missing dimensions in profile 0"):
        compiled(api, dataclasses.replace(source, profiles=(Profile("prefill", shapes),)), tmp_path)


def test_a_profile_that_contradicts_itself_is_refused(api: ModuleType, tmp_path: Path) -> None:
    """TensorRT only warns, and the engine would fail at that shape."""
    weight = numpy_helper.from_array(np.ones((2, 64), np.float16), "w")  # broadcasts to a batch of 1 or 2, not of 4
    with pytest.raises(ExportError, match="kMAX values are not self-consistent"):
        compiled(api, source_of_nodes([helper.make_node("Add", ["x", "w"], ["y"])], [weight]), tmp_path)


def test_a_gpu_that_tensorrt_rtx_cannot_compile_for_is_refused_first(api: ModuleType, tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    with pytest.raises(ExportError, match=r"compiles for SM75, .*, not for SM87"):
        compile_ahead(bundle, targets=(AMPERE, 87))
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("data", [b"", b"no graph at all", b"\x00" * 100])
def test_bytes_that_are_no_graph_are_refused(api: ModuleType, tmp_path: Path, data: bytes) -> None:
    """The parser takes some of them for an empty graph."""
    with pytest.raises((BundleError, ExportError)):
        compiled(api, dataclasses.replace(small_source(tmp_path), model=data), tmp_path)


def test_inputs_that_the_manifest_does_not_name_are_refused(api: ModuleType, tmp_path: Path) -> None:
    source = small_source(tmp_path)
    fewer = dataclasses.replace(source.spec, outputs=source.spec.outputs[:-1])
    with pytest.raises(BundleError, match=r"not those of the manifest: present\.0\.value"):
        compiled(api, dataclasses.replace(source, spec=fewer), tmp_path)


OTHER_WEIGHTS = np.linspace(3, 4, len(DATA_BYTES) // 4, dtype=np.float32)


def test_weights_come_from_the_verified_bytes_alone(api: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another decoder.data lies in the working directory, beside the bundle and in the folder of the build: none is read."""
    source = small_source(tmp_path)
    assert source.weights is not None
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "bundle"):
        (folder / "decoder.data").write_bytes(OTHER_WEIGHTS.tobytes())
    data = bytes(compiled(api, source, tmp_path).data)
    assert all(row.tobytes() in data for row in HEAD_WEIGHT)  # an engine keeps rows, in an order of its own
    assert not any(row.tobytes() in data for row in OTHER_WEIGHTS[:32].reshape(4, 8))
    with pytest.raises(ExportError, match="cannot parse"):
        compiled(api, dataclasses.replace(source, weights=source.weights[:-4]), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".weights")] == []


# --- whole or not there ---------------------------------------------------------------------------------------------


def refused_bundle(folder: Path) -> Path:
    """A verified bundle with a decoder that no TensorRT parses."""
    model = decoder_model()
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            node.op_type, node.domain = "Unheard", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return write_small_bundle(folder, decoder_concat_onnx=model.SerializeToString())


def entries(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_graph_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    bundle = refused_bundle(tmp_path / "bundle")
    before = entries(bundle)
    with pytest.raises(ExportError, match="Unheard"):
        compile_ahead(bundle, targets=(AMPERE,))
    assert entries(bundle) == before
    read_bundle(bundle)


def test_a_failed_rebuild_leaves_the_engines_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    compile_ahead(bundle, targets=(AMPERE,))
    before = entries(bundle)

    def interrupted(line: str) -> None:
        if line.startswith("decoder"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_ahead(bundle, targets=(AMPERE,), on_line=interrupted)
    assert entries(bundle) == before


def test_an_interrupt_inside_tensorrt_stops_the_build(api: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised in a thread of TensorRT's, through which no Python exception may travel."""
    monkeypatch.setattr("drivekd.export.trt.progress.INTERVAL_S", 0.0)
    said: list[str] = []

    def interrupted(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(api, small_source(tmp_path), BuildSettings(AMPERE), folder=tmp_path, on_line=interrupted)
    assert 1 <= len(said) <= 4  # phases end on their own


def test_progress_names_engine_phase_time_and_memory(api: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.export.trt.progress.INTERVAL_S", 0.0)
    lines: list[str] = []
    build_engine(api, small_source(tmp_path), BuildSettings(AMPERE), folder=tmp_path, on_line=lines.append)
    assert len(lines) > 5
    assert all(line.startswith("decoder: ") and " of " in line and " s, " in line and line.endswith(" GB") for line in lines)


KILLED = """
import sys, os, signal
from collections.abc import Callable
from pathlib import Path
from drivekd.export.trt.engines import compile_ahead
def kill(line):
    if line.startswith("decoder"):
        os.kill(os.getpid(), signal.SIGKILL)
compile_ahead(Path(sys.argv[1]), targets=(86,), on_line=kill)
"""


def test_a_killed_build_leaves_no_engines_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    done = subprocess.run([sys.executable, "-c", KILLED, str(bundle)], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (bundle / "engines").iterdir() if not path.name.startswith(".")] == []
    read_bundle(bundle)
    compile_ahead(bundle, targets=(AMPERE,))
    assert sorted(os.listdir(bundle / "engines")) == ["rtx-sm86"]


# --- without TensorRT -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="needs a machine without TensorRT")
def test_without_tensorrt_it_says_how_to_get_it(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    with pytest.raises(ExportError) as refused:
        engines_from_bundle(bundle)
    for word in (
        "is complete",
        "apt install tensorrt python3-libnvinfer",
        "https://pypi.nvidia.com",
        f"drivekd export {bundle} --trt",
    ):
        assert word in str(refused.value)
    assert not (bundle / "engines").exists()
