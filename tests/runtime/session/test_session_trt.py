"""A whole session over the stand-in for TensorRT: gate, images, three branches; the answers of onnxruntime on the same graphs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_tensorrt import FakeTensorRT, compile_libcuda, install, write_engines

from drivekd.images import RGBImage
from drivekd.runtime import load_bundle, read_bundle

pytestmark = pytest.mark.numerics

Images = dict[str, RGBImage]


@pytest.fixture
def built(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, FakeTensorRT]:
    """The tiny bundle with engines of this (pretended) GPU, and the module that runs them."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    read = read_bundle(folder)
    write_engines(read)
    library = compile_libcuda(tmp_path / "cuda")
    api = FakeTensorRT(read, library)
    install(api, library, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder, api


def test_auto_answers_from_the_engines_as_onnxruntime_does(built: tuple[Path, FakeTensorRT], images: Images) -> None:
    folder, api = built
    with load_bundle(folder) as session, load_bundle(folder, backend="ort-cpu", dialect="concat", threads=1) as plain:
        assert (session.backend, session.dialect) == ("trt", "concat")
        assert api.engines[0].contexts[0].runs > 0, "the gate was passed on these engines"
        found, expected = session.answer(images, max_new_tokens=6), plain.answer(images, max_new_tokens=6)
        assert {name: answer.text for name, answer in found.items()} == {name: answer.text for name, answer in expected.items()}
        assert {answer.backend for answer in found.values()} == {"trt"}
    assert api.counters.live_bytes == 0


def test_keys_and_values_of_a_frame_stay_on_the_device(built: tuple[Path, FakeTensorRT], images: Images) -> None:
    folder, api = built
    with load_bundle(folder, gate=False) as session:
        model, before = session.manifest.model, api.counters.to_host
        session.answer(images, max_new_tokens=6)
        logits = 4 * model.vocab_size * (3 * 6 + 1 + len(images))  # of three branches' steps, and of each chunk of the prefix
        embeds = 4 * model.hidden_size * session.manifest.chat.tokens_per_image * len(images)
        assert api.counters.to_host - before <= logits + embeds
