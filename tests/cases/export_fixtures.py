"""One tiny checkpoint and one bundle of it for all export tests: an export takes ten seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_run import FAMILIES, TinyRun

from drivekd.images import RGBImage
from drivekd.runtime import Session, load_bundle, read_bundle
from drivekd.runtime.bundle.manifest import GraphSpec
from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.session.model import StartedModel

if TYPE_CHECKING:  # torch is imported when a fixture is asked for: most files want none
    from family_cases import Tiny
    from graph_cases import WrittenGraphs

    from drivekd.export import ParityTable
    from drivekd.export.source.source import Source

GRAPH_FILES = ("vision.onnx", "decoder.gqa.onnx", "decoder.concat.onnx", "decoder.data")


@dataclass(frozen=True)
class StudentGraphs:
    source: Source
    folder: Path
    specs: dict[str, GraphSpec]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lively_model import lively_checkpoint

    return lively_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParityTable]:
    from drivekd.export import bundle_from_checkpoint

    bundle = tmp_path_factory.mktemp("exported") / "bundle"
    return bundle, bundle_from_checkpoint(checkpoint, bundle).parity


@pytest.fixture(scope="session")
def bundle(exported: tuple[Path, ParityTable]) -> Path:
    return exported[0]


@pytest.fixture(scope="session")
def shared_session(bundle: Path) -> Iterator[Session]:
    with load_bundle(bundle, threads=1) as session:
        yield session


@pytest.fixture
def session(shared_session: Session) -> Session:
    """The shared session without a kept prefix, so that tests do not depend on their order."""
    shared_session.model.prefix.forget()
    return shared_session


@pytest.fixture
def model(session: Session) -> StartedModel:
    """The session's model, as new."""
    return session.model


@pytest.fixture
def images() -> dict[str, RGBImage]:
    rng = np.random.default_rng(1)
    return {name: rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for name in ("CAM_FRONT", "CAM_BACK")}


@pytest.fixture
def ready_graphs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports in this test take the finished graphs: they test what happens around them."""
    import drivekd.export.bundle as writer

    def copy_graphs(source: Source, folder: Path, dialects: Sequence[str]) -> Any:
        for name in GRAPH_FILES:
            shutil.copy(bundle / name, folder)
        return read_bundle(bundle).manifest.graphs

    monkeypatch.setattr(writer, "write_graphs", copy_graphs)


@pytest.fixture(scope="session")
def deep_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    from bisect_cases import write_deep_source

    return write_deep_source(tmp_path_factory.mktemp("deep") / "checkpoint")


@pytest.fixture(scope="session")
def deep(deep_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Ten vision and twelve language layers for bisect to find a fault in."""
    from bisect_cases import write_bundle

    return write_bundle(deep_source, tmp_path_factory.mktemp("deep-bundle"))


@pytest.fixture(scope="module", params=FAMILIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WrittenGraphs:
    from graph_cases import written_graphs

    return written_graphs(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture(scope="session")
def student_graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyRun], StudentGraphs]:
    """student_graphs(run): the float32 graphs of a run's student, written once; tests only read them."""
    from drivekd.export.graphs.graphs import write_graphs
    from drivekd.export.source.source import load_source

    def write(run: TinyRun) -> StudentGraphs:
        folder, source = tmp_path_factory.mktemp("student-graphs"), load_source(run.student, None)
        return StudentGraphs(source, folder, write_graphs(source, folder))

    return cache(write)


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The model of a family, made once; tests only read it."""
    from family_cases import make_tiny

    return cache(lambda family: make_tiny(family, tmp_path_factory.mktemp("tiny") / family))


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of(request.param)


@pytest.fixture(scope="session")
def qwen(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("qwen2_5_vl")
