"""One tiny checkpoint and one bundle of it for all export tests: an export takes ten seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import drivekd.export.bundle as writer
from drivekd.export import ParityTable, bundle_from_checkpoint
from drivekd.images import RGBImage
from drivekd.models.tiny import TinySize, build_tiny, train_tokenizer, write_checkpoint
from drivekd.runtime import Session, load_bundle, read_bundle

SIZE = TinySize(vision_layers=2, vision_width=32, language_layers=2, language_width=32, image_size_px=56)
GRAPH_FILES = ("vision.onnx", "decoder.gqa.onnx", "decoder.concat.onnx", "decoder.data")
CORPUS = [
    "What are the important objects in the current scene, and where are they? Signal: red. A white van is near.",
    "The ego vehicle drives at 8 m/s. What should it do next, and why? Brake to a stop. Reason: the signal is red.",
] * 20


def lively_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A random model that says different things about different images: at the usual small initialisation a model with tied
    embeddings repeats its last token whatever it sees, and every test on tokens would be vacuous."""
    tokenizer = train_tokenizer(CORPUS, ["CAM_FRONT", "CAM_BACK"], 400)
    model = build_tiny(SIZE, tokenizer, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda" in name:
                parameter.fill_(1.0)
            elif parameter.ndim >= 2 and "embed_tokens" not in name:
                parameter.mul_(6.0)
    write_checkpoint(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParityTable]:
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
    shared_session.prefix.forget()
    return shared_session


@pytest.fixture
def images() -> dict[str, RGBImage]:
    rng = np.random.default_rng(1)
    return {name: rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for name in ("CAM_FRONT", "CAM_BACK")}


@pytest.fixture
def ready_graphs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports in this test take the finished graphs: they test what happens around them."""

    def copy_graphs(source: writer.Source, folder: Path, dialects: Sequence[str]) -> Any:
        for name in GRAPH_FILES:
            shutil.copy(bundle / name, folder)
        return read_bundle(bundle).manifest.graphs

    monkeypatch.setattr(writer, "write_graphs", copy_graphs)
