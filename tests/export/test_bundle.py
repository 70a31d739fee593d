"""The writer: a bundle arrives whole, the same from any folder, or not at all; and what is whole runs without torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.torch
import torch
from lively_model import lively_checkpoint
from opened_files import watched_opens
from tiny_run import TinyRun

import drivekd.export.bundle as writer
from drivekd.errors import BundleError, CheckpointError, DrivekdError, ExportError, RunnerError, UsageError
from drivekd.export import ParityTable, bundle_from_checkpoint, engines_from_bundle
from drivekd.export.parity.probed_graph import prefill_feeds
from drivekd.export.settings import plan_from_options
from drivekd.images import RGBImage
from drivekd.models import load_model
from drivekd.models.tiny import TinySize
from drivekd.quantization.rounded_model import round_model
from drivekd.quantization.scales import read_scales
from drivekd.runtime import Ask, bench_bundle, check_bundle, load_bundle, read_bundle
from drivekd.runtime.engine.ort import OrtRunner

pytestmark = pytest.mark.numerics

CONCAT = "dialects=[concat]"
GRAPHS = ("vision.onnx", "decoder.concat.onnx", "decoder.gqa.onnx")
WIDE = TinySize(vision_layers=1, vision_width=256, language_layers=1, language_width=64, image_size_px=56)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "damaged"))


def test_a_bundle_checks_and_states_its_parity(exported: tuple[Path, ParityTable]) -> None:
    bundle, table = exported
    report = check_bundle(bundle, threads=1)
    assert report.bundle == read_bundle(bundle).digest
    assert report.replay is not None
    assert report.replay.passed
    assert report.replay.tokens_compared > 30, "ties of 3 x 16 recorded tokens are the exception"
    stored = json.loads((bundle / "manifest.json").read_bytes())["parity"]
    assert stored == table.to_json()
    assert check_bundle(bundle, replay=False).replay is None


def test_one_export_reads_config_json_once(family_run: TinyRun, tmp_path: Path) -> None:
    """Also where it answers the evaluation set: transformers, too, is given what was read."""
    shutil.copytree(family_run.folder / "images", tmp_path / "images")
    records = [record for record in json.loads((family_run.folder / "train.json").read_text()) if len(record["images"]) == 1]
    (tmp_path / "records.json").write_text(json.dumps(records))
    evaluation = f"evaluation={tmp_path / 'records.json'}"
    student = Path(shutil.copytree(family_run.student, tmp_path / "student"))  # nobody has its digest yet
    with watched_opens() as opened:
        bundle_from_checkpoint(student, tmp_path / "bundle", plan=plan_from_options("fp32", [evaluation, CONCAT]))
    assert opened.count(student / "config.json") == 1 + 1  # and its bytes once, for the checkpoint's digest


EXPORT_ELSEWHERE = """
import os, pathlib, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from drivekd.export import bundle_from_checkpoint
from drivekd.export.settings import plan_from_options
bundle_from_checkpoint(*map(pathlib.Path, sys.argv[1:3]), plan=plan_from_options(sys.argv[3], sys.argv[4:]))
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_same_checkpoint_gives_the_same_digest_anywhere(tiny_run: TinyRun, tmp_path: Path, precision: str) -> None:
    """Another process, folder, hash seed, number of cores and threads; and nothing hangs on what this process did before.

    The model is wide enough for torch's products to differ between one thread and two. int4: by data, with 8 bits where they save
    most.
    """
    shutil.copytree(tiny_run.folder / "images", tmp_path / "images")
    shutil.copy(tiny_run.folder / "train.json", tmp_path)
    settings = ["calibration={}train.json", "bits=4.8"] if precision == "int4" else []
    checkpoint = lively_checkpoint(tmp_path / "some" / "where" / "else", size=WIDE)
    environment = {**os.environ, **ONE_THREAD, "PYTHONHASHSEED": "7"}
    there = [setting.format("") for setting in settings]
    command = [sys.executable, "-c", EXPORT_ELSEWHERE, "some/where/else", "out", precision, *there]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert (made.stdout, made.stderr) == ("", ""), "the exporter talks"
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        plan = plan_from_options(precision, [setting.format(f"{tmp_path}/") for setting in settings])
        bundle_from_checkpoint(checkpoint, tmp_path / "here", plan=plan)
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "medium"), "settings are given back"
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
    first, second = (read_bundle(tmp_path / name) for name in ("here", "out"))
    assert [name for name in first.files if first.files[name] != second.files[name]] == []
    assert first.digest == second.digest


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_portable_and_name_no_source(bundle: Path, name: str) -> None:
    model = onnx.load(bundle / name)
    domains = {opset.domain: opset.version for opset in model.opset_import}
    if "gqa" in name:  # onnxruntime's own operators; the checker does not know the ones in the standard domain
        assert set(domains) == {"", "com.microsoft"}
    else:
        onnx.checker.check_model(model)
        assert set(domains) == {""}
    assert domains[""] == 18
    assert model.ir_version <= 10
    data = (bundle / name).read_bytes()
    for trace in (b".py", b"stack_trace", b"drivekd", str(Path.home()).encode()):
        assert trace not in data
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_graphs_have_the_named_dims_of_their_spec(bundle: Path) -> None:
    for spec in read_bundle(bundle).manifest.graphs.values():
        graph = onnx.load(bundle / spec.file).graph
        for stated, found in zip((*spec.inputs, *spec.outputs), (*graph.input, *graph.output), strict=True):
            dims = tuple(dim.dim_param or dim.dim_value for dim in found.type.tensor_type.shape.dim)
            assert (found.name, dims) == (stated.name, stated.dims)


def test_vision_takes_any_number_of_tiles(bundle: Path) -> None:
    read = read_bundle(bundle)
    size = read.manifest.images.size_px
    pixel_values = np.random.default_rng(0).normal(size=(5, 3, size, size)).astype(np.float32)
    with OrtRunner(read, "vision", threads=1) as vision:
        together = vision.infer({"pixel_values": pixel_values})["image_embeds"].numpy()
        for index in range(5):
            alone = vision.infer({"pixel_values": pixel_values[index : index + 1]})["image_embeds"].numpy()
            np.testing.assert_allclose(alone[0], together[index], atol=1e-5)  # fp32, another blocking per batch size


def test_dialects_share_their_weights(bundle: Path, tmp_path: Path) -> None:
    files = read_bundle(bundle).files
    assert len(files["decoder.data"]) > len(files["decoder.concat.onnx"]) + len(files["decoder.gqa.onnx"])
    alone = shutil.copytree(bundle, tmp_path / "copy")
    (alone / "decoder.data").unlink()
    with pytest.raises(BundleError, match=r"decoder\.data is missing"):
        load_bundle(alone)


def test_no_changed_byte_reaches_an_engine(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an engine was given an unverified file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    rng = np.random.default_rng(0)
    for path in sorted(copy.iterdir()):
        data = path.read_bytes()
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=f"{path.name}.* was changed"):
            load_bundle(copy)
        path.write_bytes(data)


def rewrite(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change files or manifest and put the digests right again: what a broken exporter would have written."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    edit(manifest)
    for name in manifest["files"]:
        data = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    data = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(data)
    (bundle / "bundle.sha256").write_text(hashlib.sha256(data).hexdigest() + "\n")


def scaled_vision(bundle: Path, factor: float) -> None:
    model = onnx.load(bundle / "vision.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = onnx.numpy_helper.to_array(largest)
    largest.CopyFrom(onnx.numpy_helper.from_array(weights[..., ::-1] * np.float32(factor), largest.name))
    onnx.save(model, bundle / "vision.onnx")


def test_the_gate_refuses_an_engine_that_computes_something_else(copy: Path) -> None:
    """Digests are right, the numbers are not: only the replay can see it."""
    scaled_vision(copy, 1.0)
    rewrite(copy, lambda manifest: None)
    assert check_bundle(copy, replay=False).num_files == 9
    with pytest.raises(BundleError, match=r"does not compute what the exporting machine did: vision cosine -?0\.[0-8]"):
        check_bundle(copy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vision.onnx", b"not onnx", r"vision\.onnx is no ONNX file"),
        ("tokenizer.json", b"{}", r"tokenizer\.json: not a tokenizer file"),
        ("embedding.safetensors", b"short", r"embedding\.safetensors cannot be read"),
        ("embedding.safetensors", safetensors.torch.save({"weight": torch.zeros(3, 4)}), r"expected weight float32 \["),
        ("golden.npz", b"not a zip", r"golden\.npz cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_says(copy: Path, name: str, content: bytes, message: str) -> None:
    (copy / name).write_bytes(content)
    rewrite(copy, lambda manifest: None)
    with pytest.raises((BundleError, RunnerError), match=message):
        check_bundle(copy)


def test_a_graph_with_other_names_is_refused(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["graphs"]["vision"]["inputs"][0].update(name="pixels"))
    with pytest.raises(BundleError, match="graph 'vision' has no tensor 'pixel_values'"):
        load_bundle(copy)


def test_a_provider_that_fell_back_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunnerError, match="needs onnxruntime's CUDAExecutionProvider"):
        load_bundle(bundle, backend="ort-cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(RunnerError, match="asked onnxruntime for CUDAExecutionProvider, it fell back"),
    ):
        load_bundle(bundle, backend="ort-cuda")


def test_out_must_be_free(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("out", "file"):
        with pytest.raises(UsageError, match="exists and is not an empty directory"):
            bundle_from_checkpoint(checkpoint, tmp_path / name)
    assert (tmp_path / "out" / "mine").read_text() == (tmp_path / "file").read_text() == "precious"


def spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load(path.read_bytes())
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    weights[name][2, 3] = float("nan")
    path.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))


def edit_json(name: str, **values: object) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **values}))


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: shutil.rmtree(folder), CheckpointError, "no such checkpoint directory"),
        (lambda folder: (folder / "tokenizer.json").unlink(), CheckpointError, r"tokenizer\.json is missing"),
        (write("tokenizer.json", "{}"), CheckpointError, "not a tokenizer file"),
        (lambda folder: (folder / "model.safetensors").unlink(), CheckpointError, r"no \*\.safetensors weights"),
        (write("model.safetensors", "short"), CheckpointError, "weights cannot be loaded"),
        (edit_json("config.json", model_type="llava"), CheckpointError, "model_type is 'llava'; this version takes 'internvl'"),
        (spoil_weights, CheckpointError, r"up_proj\.weight has 1 values that are NaN or infinite"),
        (write("prompts.json", "{"), CheckpointError, "not valid JSON"),
        (write("prompts.json", '{"prompt": {}}'), CheckpointError, r"prompts\.json: unknown key 'prompt'"),
        (write("prompts.json", '{"prompts": {}}'), CheckpointError, "no capability"),
        (write("prompts.json", '{"prompts": {"total": "a"}}'), CheckpointError, "'total' is no name for a capability"),
        (write("prompts.json", '{"prompts": {"a": " "}}'), CheckpointError, "the question of 'a' is empty"),
        (write("prompts.json", '{"prompts": {"a": "{x}"}}'), CheckpointError, "variable 'x', which has no default"),
        (write("prompts.json", '{"prompts": {"a": "<|im_end|>"}}'), UsageError, "chat marker"),
        (write("prompts.json", '{"prompts": {"a": "b"}, "cameras": ["c", "c"]}'), CheckpointError, "named twice"),
    ],
    ids=range(15),
)
def test_a_bad_checkpoint_is_named_and_nothing_written(
    damaged: Path, tmp_path: Path, damage: Callable[[Path], Any], error: type[DrivekdError], message: str
) -> None:
    damage(damaged)
    with pytest.raises(error, match=message):
        bundle_from_checkpoint(damaged, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"damaged"}


@pytest.mark.usefixtures("ready_graphs")
def test_prompts_of_the_checkpoint_and_of_the_caller(damaged: Path, tmp_path: Path, images: dict[str, RGBImage]) -> None:
    stored = {
        "prompts": {"planning": "At {speed} m/s, what next?", "perception": "What is near?"},
        "variables": {"speed": 8},
        "cameras": ["CAM_BACK", "CAM_FRONT"],
        "max_new_tokens": 5,
    }
    (damaged / "prompts.json").write_text(json.dumps(stored))
    bundle_from_checkpoint(damaged, tmp_path / "stored")
    with load_bundle(tmp_path / "stored", threads=1) as session:
        assert session.capabilities == ("planning", "perception")
        assert session.cameras == ("CAM_BACK", "CAM_FRONT")
        asked = Ask(variables={"speed": 2}).questions(session.manifest.prompts, session.variables)
        assert asked["planning"] == "At 2 m/s, what next?"
        answers = session.answer(images)
        assert all(answer.tokens <= 5 for answer in answers.values())
        turned = session.answer(dict(reversed(images.items())))
        assert [answer.text for answer in turned.values()] == [answer.text for answer in answers.values()]
    bundle_from_checkpoint(damaged, tmp_path / "given", prompts={"reasoning": "Why, at {speed} m/s?"})
    assert read_bundle(tmp_path / "given").manifest.prompts == {"reasoning": "Why, at {speed} m/s?"}
    assert check_bundle(tmp_path / "given", threads=1).replay is not None
    with pytest.raises(UsageError, match="variable 'gap', which has no default"):
        bundle_from_checkpoint(damaged, tmp_path / "none", prompts={"reasoning": "{gap}?"})


@pytest.mark.usefixtures("ready_graphs")
def test_a_full_disk_is_said_before_and_within(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(ExportError, match=r"needs about [\d,.]+ MB, the disk has 0.0 MB free"):
            bundle_from_checkpoint(checkpoint, tmp_path / "out")

    def fill(source: object, folder: Path, dialects: object) -> None:
        (folder / "vision.onnx").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "write_graphs", fill)
    with pytest.raises(ExportError, match="no space left on the disk"):
        bundle_from_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ready_graphs")
def test_an_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(session: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "record_golden", interrupt)
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        bundle_from_checkpoint(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert list((tmp_path / "out").iterdir()) == []


def test_tensorrt_says_what_is_missing(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"bundle sha256:.* is complete, but no engine was built: TensorRT is not installed"):
        engines_from_bundle(bundle)
    with pytest.raises(BundleError):
        engines_from_bundle(tmp_path)


def test_bench_counts_every_stage(bundle: Path) -> None:
    report = bench_bundle(bundle, frames=3, warmup=1, images=2, max_new_tokens=4, threads=1)
    stages = {stage.stage: stage for stage in report.stages}
    assert set(stages) == {"vision", "prefill", "questions", "decode", "ttft", "total", "perception", "reasoning", "planning"}
    assert all(0 < stage.p50_ms <= stage.p95_ms <= stage.p99_ms for stage in report.stages)
    assert report.tokens_per_frame == 12
    assert report.decode_tokens_per_s > 0
    assert report.peak_rss_mb > 50
    assert json.loads(json.dumps(report.to_json()))["stages"][0]["stage"] == "vision"
    assert len(report.rows()) == len(stages)
    with pytest.raises(UsageError, match="expected frames >= 1"):
        bench_bundle(bundle, frames=0)


BLOCKED = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "jinja2", "drivekd.export", "drivekd.models"):
    sys.modules[name] = None
import numpy
from pathlib import Path
from drivekd.runtime import check_bundle, load_bundle
check_bundle(Path(sys.argv[1]), threads=1)
with load_bundle(Path(sys.argv[1]), threads=1) as session:
    answers = session.answer({"CAM_FRONT": numpy.zeros((30, 40, 3), numpy.uint8)}, max_new_tokens=3)
assert set(answers) == {"perception", "reasoning", "planning"}, answers
loaded = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
print(sorted(loaded & {"torch", "transformers", "onnx", "pandas", "scipy"}))
"""


def test_the_runtime_answers_without_torch_transformers_or_onnx(bundle: Path) -> None:
    made = subprocess.run([sys.executable, "-c", BLOCKED, str(bundle)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == "[]"


def test_building_engines_imports_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from drivekd.export import engines_from_bundle"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def rounded(family_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle of int4, rounded on records, and the rounded checkpoint that was written beside it."""
    folder = tmp_path_factory.mktemp("rounded")
    overrides = [f"calibration={family_run.folder / 'train.json'}", f"rounded_checkpoint={folder / 'checkpoint'}", "bits=4.8"]
    bundle_from_checkpoint(family_run.student, folder / "bundle", plan=plan_from_options("int4", overrides))
    return folder / "bundle", folder / "checkpoint"


def test_a_rounded_checkpoint_is_exported_as_it_is(rounded: tuple[Path, Path], tmp_path: Path) -> None:
    """Values and scales of the second bundle are those of the first, without records; only a tied head is rounded anew."""
    bundle, checkpoint = rounded
    bundle_from_checkpoint(checkpoint, tmp_path / "again", plan=plan_from_options("int4"))
    first, second = (read_bundle(path).manifest.graphs["decoder.gqa"] for path in (bundle, tmp_path / "again"))
    assert (first.int8, first.bits, first.block) == (second.int8, second.bits, second.block)
    assert first.int8, "bits = 4.8 leaves room for some"
    stored = [
        {name: value.const_value.numpy() for name, value in ir.load(path / "decoder.gqa.onnx").graph.initializers.items()}
        for path in (bundle, tmp_path / "again")
    ]
    names = [name for name in stored[0] if ".weight_" in name and not name.startswith("lm_head")]
    assert len(names) >= 8
    for name in names:
        np.testing.assert_array_equal(stored[0][name], stored[1][name], err_msg=name)


def test_what_a_checkpoint_decides_cannot_be_set(rounded: tuple[Path, Path], tmp_path: Path) -> None:
    calibration = f"calibration={rounded[0].parent / 'none.json'}"
    for setting in ("block=64", "int8=[lm_head]", "exclude=[lm_head]", "vision=int4", "vision=fp32", "bits=6", "budget_mb=20"):
        with pytest.raises(UsageError, match=rf"--set {setting.partition('=')[0]}: .*weight_scales\.safetensors decides it"):
            bundle_from_checkpoint(rounded[1], tmp_path / "again", plan=plan_from_options("int4", [setting, calibration]))


@pytest.mark.parametrize(
    ("out", "rounded_to"), [("bundle", "bundle"), ("bundle", "bundle/rounded"), ("rounded/bundle", "rounded")]
)
def test_a_rounded_checkpoint_lies_beside_the_bundle(checkpoint: Path, tmp_path: Path, out: str, rounded_to: str) -> None:
    plan = plan_from_options("int4", [f"rounded_checkpoint={tmp_path / rounded_to}"])
    with pytest.raises(UsageError, match="lie in one another; name folders side by side"):
        bundle_from_checkpoint(checkpoint, tmp_path / out, plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_a_rounded_checkpoint_goes_with_a_bundle_that_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "record_golden", lambda model: (_ for _ in ()).throw(RunnerError("planted")))
    plan = plan_from_options("int4", [f"rounded_checkpoint={tmp_path / 'rounded'}"])
    with pytest.raises(RunnerError, match="planted"):
        bundle_from_checkpoint(checkpoint, tmp_path / "bundle", plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_is_too_small_says_what_would_do(family_run: TinyRun, tmp_path: Path) -> None:
    settings = ["budget_mb=0.2", f"calibration={family_run.folder / 'train.json'}"]
    with pytest.raises(UsageError, match=r"budget_mb = 0\.2: with every MatMul in 4 bits it is about \d\.\d MB"):
        bundle_from_checkpoint(family_run.student, tmp_path / "bundle", plan=plan_from_options("int4", settings))


def test_nothing_left_to_mix_is_told(family_run: TinyRun, tmp_path: Path) -> None:
    settings = ["exclude=['*']", "budget_mb=20", f"calibration={family_run.folder / 'train.json'}"]
    with pytest.raises(UsageError, match="nothing of the decoder is left to be mixed"):
        bundle_from_checkpoint(family_run.student, tmp_path / "bundle", plan=plan_from_options("int4", settings))


def test_a_quantized_bundle_says_what_it_cost(rounded: tuple[Path, Path]) -> None:
    manifest = read_bundle(rounded[0]).manifest
    (row,) = manifest.language
    assert row["tokens"] > 0 and 0 <= row["agreement"] <= 1
    assert row["perplexity"] > 1 and row["exact_perplexity"] > 1
    assert manifest.embedding.precision == "int8"
    assert 4.5 <= manifest.graphs["decoder.concat"].bits <= 4.8
    rows = [row for row in manifest.parity if row["graph"] == "decoder.gqa" and row["output"] == "logits"]
    assert rows and all(row["rms"] < 0.3 for row in rows)


@pytest.mark.parametrize("dialect", ["gqa", "concat"])
def test_the_graphs_compute_what_training_computed(rounded: tuple[Path, Path], tmp_path: Path, dialect: str) -> None:
    """Logits of the checkpoint with its scales, as training and `drivekd eval` have them, to 1e-3 of their scale: in float,
    with onnxruntime's own rounding of activations switched off."""
    plan = plan_from_options("int4", [f"dialects=[{dialect}]"])
    bundle_from_checkpoint(rounded[1], tmp_path / "bundle", plan=plan)
    bundle = read_bundle(tmp_path / "bundle")
    model = load_model(rounded[1]).eval()
    round_model(model, *read_scales(rounded[1]))
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        rows = model.get_input_embeddings()(ids)
        expected = model(input_ids=ids).logits[0, -1].numpy()
    spec = bundle.manifest.graphs[f"decoder.{dialect}"]
    axes = bundle.manifest.model.rotary_axes
    feeds = prefill_feeds(spec, rows[0].numpy(), np.broadcast_to(np.arange(ids.shape[1]), (axes, ids.shape[1])))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(bundle.path / spec.file), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: np.asarray(value) for name, value in feeds.items()})
    np.testing.assert_allclose(logits[0], expected, atol=1e-3 * np.abs(expected).max())
