"""What drivekd asks of TensorRT proper, shown by a stand-in: which flags, profiles, caches and files.

test_builder.py compiles with the real TensorRT-RTX; here is what that cannot show: timing cache, device, driver, versions.
The last test is TensorRT itself.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from small_bundle import DECODER, VISION, write_small_bundle

from drivekd.errors import BundleError, ExportError
from drivekd.export.trt import engines as trt
from drivekd.export.trt.engines import engines_from_bundle
from drivekd.runtime.bundle.engine_record import EnginePlatform, engine_platform, verify_engine
from drivekd.runtime.bundle.reader import read_bundle
from drivekd.runtime.engine.cuda import Device, this_device

ORIN = Device("Orin", 87, "540.4.0, CUDA 12.6")


class Recorder:
    """Remembers attributes that are set and calls that are made."""

    def __init__(self, **given: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name, *args))

    def made(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+measured"


class Config(Recorder):
    foreign = b"foreign"

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.calls.append(("set_timing_cache", cache.data, ignore_mismatch))
        self.cache = cache
        return not cache.data.startswith(self.foreign)

    def get_timing_cache(self) -> Cache:
        return self.cache


class FakeTensorRT(types.ModuleType):
    """One build is one entry of `builds`: creation flags, parsed bytes and path, config."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        self.__version__ = "10.3.0.30"
        self.builds: list[Recorder] = []
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
        self.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
        self.ILogger = self.IProgressMonitor = object

    def Builder(self, logger: Any) -> Recorder:
        build = Recorder(logger=logger, config=Config())
        build.create_network = lambda flags: self._network(build, flags)
        build.create_builder_config = lambda: build.config
        build.create_optimization_profile = Recorder
        build.build_serialized_network = lambda network, config: b"engine of " + build.spec.file.encode()
        self.builds.append(build)
        return build

    def _network(self, build: Recorder, flags: int) -> Recorder:
        build.spec = (VISION, DECODER)[(len(self.builds) - 1) % 2]
        build.flags = flags
        names = [types.SimpleNamespace(name=tensor.name) for tensor in build.spec.inputs]
        outputs = [types.SimpleNamespace(name=tensor.name) for tensor in build.spec.outputs]
        return Recorder(
            num_inputs=len(names), num_outputs=len(outputs), get_input=names.__getitem__, get_output=outputs.__getitem__
        )

    def OnnxParser(self, network: Recorder, logger: Any) -> Recorder:
        build = self.builds[-1]

        def parse(model: bytes, path: str) -> bool:
            build.model, build.path = model, path
            build.beside = {file.name: file.read_bytes() for file in Path(path).parent.iterdir()}
            return True

        return Recorder(parse=parse)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(trt, "this_device", lambda: ORIN)
    return fake


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def here(api: FakeTensorRT) -> EnginePlatform:
    return engine_platform("tensorrt", api.__version__, ORIN.capability, ORIN.name)


def test_engines_of_this_device_arrive_whole_with_their_record(api: FakeTensorRT, bundle: Path) -> None:
    rows = engines_from_bundle(bundle)
    assert [row.engine for row in rows] == ["sm87/vision", "sm87/decoder"]
    found = verify_engine(read_bundle(bundle), "sm87", here=here(api))
    assert found.engine("decoder") == b"engine of decoder.concat.onnx"
    assert (found.record.driver, found.record.platform) == (ORIN.driver, here(api))
    assert found.record.engines["decoder"].precision == "fp32"
    assert sorted(path.name for path in (bundle / "engines").iterdir()) == ["sm87"]


def test_networks_are_strongly_typed_and_the_decoder_has_two_profiles(api: FakeTensorRT, bundle: Path) -> None:
    engines_from_bundle(bundle, workspace_bytes=7)
    assert [build.flags for build in api.builds] == [1 << 1, 1 << 1]
    vision, decoder = (build.config for build in api.builds)
    assert decoder.made("set_memory_pool_limit") == [("workspace", 7)]
    assert (len(vision.made("add_optimization_profile")), len(decoder.made("add_optimization_profile"))) == (1, 2)
    prefill, decode = (profile for (profile,) in decoder.made("add_optimization_profile"))
    assert {call[0] for call in prefill.made("set_shape")} == {tensor.name for tensor in DECODER.inputs}
    assert {name: low for name, low, *_ in prefill.made("set_shape")}["past_key_values.0.key"] == (1, 1, 0, 2)
    assert {shape[1] for name, *shapes in decode.made("set_shape") if name == "inputs_embeds" for shape in shapes} == {1}
    assert decoder.made("set_compute_capability") == []  # TensorRT builds for the GPU that it measures on


def test_the_parser_gets_verified_bytes_and_a_private_copy_of_the_weights(api: FakeTensorRT, bundle: Path) -> None:
    before = read_bundle(bundle)
    engines_from_bundle(bundle)
    vision, decoder = api.builds
    assert (vision.model, vision.beside) == (before.files["vision.onnx"], {})
    assert decoder.model == before.files["decoder.concat.onnx"]
    assert decoder.beside == {"decoder.data": before.files["decoder.data"]}
    assert Path(decoder.path).parent.parent != bundle
    assert not Path(decoder.path).parent.exists()


def test_timings_are_kept_for_the_next_build(api: FakeTensorRT, bundle: Path) -> None:
    engines_from_bundle(bundle)
    assert [build.config.made("set_timing_cache") for build in api.builds] == [[(b"", False)], [(b"+measured", False)]]
    engines_from_bundle(bundle)
    assert api.builds[2].config.made("set_timing_cache") == [(b"+measured+measured", False)]


def test_timings_of_another_device_or_that_were_changed_are_not_used(api: FakeTensorRT, bundle: Path) -> None:
    engines_from_bundle(bundle)
    lines: list[str] = []
    (bundle / "engines" / "sm87" / "timing.cache").write_bytes(b"changed")
    engines_from_bundle(bundle, on_line=lines.append)
    assert api.builds[2].config.made("set_timing_cache") == [(b"", False)]
    assert any("the old timing cache is not used" in line for line in lines)
    Config.foreign, lines = b"+measured", []
    engines_from_bundle(bundle, on_line=lines.append)
    Config.foreign = b"foreign"
    assert api.builds[4].config.made("set_timing_cache") == [(b"+measured+measured", False), (b"", False)]
    assert any("another device's or version's" in line for line in lines)


def test_a_target_that_is_not_this_device_is_refused(api: FakeTensorRT, bundle: Path) -> None:
    assert engines_from_bundle(bundle, targets=["sm87"])
    with pytest.raises(ExportError, match=r"sm110 is not this device, which is sm87 \(Orin\)"):
        engines_from_bundle(bundle, targets=["sm110"])


def test_an_old_tensorrt_and_a_machine_without_a_gpu_are_refused(
    api: FakeTensorRT, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "this_device", lambda: None)
    with pytest.raises(ExportError, match="no NVIDIA GPU or no driver"):
        engines_from_bundle(bundle)
    api.__version__ = "8.6.2"
    with pytest.raises(ExportError, match=r"TensorRT 8.6.2 is too old; expected 10.3"):
        engines_from_bundle(bundle)
    assert not (bundle / "engines").exists()


def test_a_bundle_that_was_changed_never_reaches_tensorrt(api: FakeTensorRT, bundle: Path) -> None:
    data = bytearray((bundle / "decoder.data").read_bytes())
    data[3] ^= 1
    (bundle / "decoder.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.data was changed"):
        engines_from_bundle(bundle)
    assert api.builds == []


def test_a_link_in_place_of_the_engines_is_not_followed(api: FakeTensorRT, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (bundle / "engines").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="engines is a link"):
        engines_from_bundle(bundle)
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.e2e
def test_engines_are_built_where_torch_and_onnx_are_not() -> None:
    """On the car: only what the runtime needs."""
    blocked = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "tensorrt", "tensorrt_rtx")
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))"
    code = f"{block}; import drivekd.export.trt.engines, drivekd.cli.doctor; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.trt
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None or this_device() is None, reason="needs TensorRT and its GPU")
def test_tensorrt_builds_and_takes_back_its_engines(bundle: Path) -> None:
    import tensorrt

    device = this_device()
    assert device is not None
    rows = engines_from_bundle(bundle)
    target = rows[0].engine.split("/")[0]
    platform = engine_platform("tensorrt", tensorrt.__version__, device.capability, device.name)
    found = verify_engine(read_bundle(bundle), target, here=platform)
    engine = tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine(found.engine("decoder"))
    assert engine.num_optimization_profiles == 2
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    assert names == {tensor.name for tensor in (*DECODER.inputs, *DECODER.outputs)}
    assert "timing.cache" in found.files
