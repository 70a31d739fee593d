"""A small bundle with engines of a pretended GPU, and the stand-in for TensorRT that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_tensorrt import FakeTensorRT, compile_libcuda, install, write_engines
from small_bundle import write_small_bundle
from trt_cases import DECODER

from drivekd.runtime.bundle.reader import Bundle, read_bundle
from drivekd.runtime.engine.trt import TrtRunner


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    found = read_bundle(write_small_bundle(tmp_path / "bundle"))
    write_engines(found)
    return found


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_libcuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def api(bundle: Bundle, library: str, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(bundle, library)
    fake.counters.limit_memory(1 << 40)
    install(fake, library, monkeypatch)
    return fake


@pytest.fixture
def runner(api: FakeTensorRT, bundle: Bundle) -> Iterator[TrtRunner]:
    with TrtRunner(bundle, DECODER) as opened:
        yield opened
