"""The parity gate: replayed once, remembered for exactly what was judged, and passed by nothing that was not computed here."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivekd.errors import BundleError
from drivekd.runtime import Session, read_bundle
from drivekd.runtime.bundle.npz import npz_bytes
from drivekd.runtime.parity import gate
from drivekd.runtime.parity.gate import keep_verdict, pass_gate, replay_now
from drivekd.runtime.parity.golden import GOLDEN_FILE, NUM_IMAGES, Replay, golden_images, load_golden
from drivekd.runtime.session.model import StartedModel

pytestmark = pytest.mark.numerics

PASSED = Replay(vision_cosine=1.0, tokens_compared=5, tokens_agreeing=5)


@pytest.fixture(scope="module")
def golden(bundle: Path) -> bytes:
    return read_bundle(bundle).files[GOLDEN_FILE]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "gate"


@pytest.fixture
def vision_calls(model: StartedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that each vision call read."""
    calls: list[int] = []
    infer = model.vision.infer

    def counted(feeds: Any) -> Any:
        calls.append(len(feeds["pixel_values"]))
        return infer(feeds)

    monkeypatch.setattr(model.vision, "infer", counted)
    return calls


def changed(golden: bytes, **arrays: Any) -> bytes:
    return npz_bytes({**load_golden(golden, "here"), **arrays})


def verdicts(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_recorded_run_is_replayed_once(
    model: StartedModel, golden: bytes, bundle: Path, folder: Path, vision_calls: list[int]
) -> None:
    first = pass_gate(model, golden, bundle, folder=folder)
    assert first.passed and first.tokens_compared > 30
    assert len(vision_calls) == NUM_IMAGES  # one vision pass serves tokens and cosine
    assert len(verdicts(folder)) == 1
    assert pass_gate(model, golden, bundle, folder=folder) == first
    assert len(vision_calls) == NUM_IMAGES


def test_the_session_is_as_new_afterwards(session: Session, golden: bytes, bundle: Path, folder: Path) -> None:
    session.timings_ms = {}
    pass_gate(session.model, golden, bundle, folder=folder)
    assert session.timings_ms == {}
    tiles = golden_images(session.manifest.images.tile_px)
    session.answer(dict(zip(session.cameras or tiles, tiles.values(), strict=False)), max_new_tokens=2)
    assert session.counts["images_encoded"] == min(len(tiles), len(session.cameras) or len(tiles))  # none is kept of the run


@pytest.mark.parametrize("what", ["bundle", "dialect", "version", "engine", "device"])
def test_another_bundle_engine_or_device_is_judged_anew(
    model: StartedModel,
    golden: bytes,
    bundle: Path,
    folder: Path,
    vision_calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    pass_gate(model, golden, bundle, folder=folder)
    if what == "bundle":
        monkeypatch.setattr(model, "bundle_digest", "sha256:" + "0" * 64)
    elif what == "dialect":
        monkeypatch.setattr(model, "dialect", "concat")
    elif what == "version":
        monkeypatch.setattr(gate, "__version__", "99")
    else:
        identity = gate.engine_identity
        monkeypatch.setattr(gate, "engine_identity", lambda path, backend: identity(path, backend) | {what: "another"})
    pass_gate(model, golden, bundle, folder=folder)
    assert len(vision_calls) == 2 * NUM_IMAGES
    assert len(verdicts(folder)) == 2


@pytest.mark.parametrize("wrong", ["tokens", "image_embeds"])
def test_a_machine_that_computes_something_else_never_passes(
    model: StartedModel, golden: bytes, bundle: Path, folder: Path, wrong: str
) -> None:
    arrays = load_golden(golden, "here")
    other = {"tokens": (arrays["tokens"] + 1) % model.manifest.model.vocab_size, "image_embeds": -arrays["image_embeds"]}
    for _ in range(2):
        with pytest.raises(BundleError, match=r"does not compute what the exporting machine did.*Do not drive with it"):
            pass_gate(model, changed(golden, **{wrong: other[wrong]}), bundle, folder=folder)
    assert verdicts(folder) == []


def test_a_bundle_without_a_recorded_run_never_passes(model: StartedModel, bundle: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"golden\.npz is missing"):
        pass_gate(model, None, bundle, folder=folder)


def test_no_changed_byte_of_a_verdict_passes_for_another(model: StartedModel, bundle: Path, folder: Path) -> None:
    """Whatever is read back is the run that was stored, or nothing."""
    keep_verdict(model, bundle, PASSED, folder=folder)
    (file,) = verdicts(folder)
    whole, identity = file.read_bytes(), gate._identity(model, bundle)
    assert gate._read(file, identity) == PASSED
    rng = np.random.default_rng(0)
    for other in (b"4", b"6"):
        file.write_bytes(whole.replace(b": 5", b": " + other))
        assert gate._read(file, identity) is None
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        file.write_bytes(data)
        found = gate._read(file, identity)
        assert found in (None, PASSED)
        refused += found is None
    assert refused > 250
    for length in range(0, len(whole) - 2, 7):
        file.write_bytes(whole[:length])
        assert gate._read(file, identity) is None


def test_a_verdict_of_something_else_or_of_a_failed_run_does_not_count(model: StartedModel, bundle: Path, folder: Path) -> None:
    keep_verdict(model, bundle, PASSED, folder=folder)
    (file,) = verdicts(folder)
    identity = gate._identity(model, bundle)
    assert gate._read(file, {**identity, "dialect": "concat"}) is None
    for replay in ({"vision_cosine": 0.5}, {"tokens_agreeing": 1}):
        stored = json.loads(file.read_bytes())["verdict"]
        stored["replay"] |= replay
        file.write_text(json.dumps({"verdict": stored, "sha256": gate._digest(stored)}))
        assert gate._read(file, identity) is None
    for other in ([], 3, {"verdict": 3, "sha256": ""}, {"verdict": {}}):
        file.write_text(json.dumps(other))
        assert gate._read(file, identity) is None


def test_where_nothing_can_be_kept_the_gate_still_judges(
    model: StartedModel, golden: bytes, bundle: Path, tmp_path: Path, vision_calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, logger="drivekd"):
        for _ in range(2):
            assert pass_gate(model, golden, bundle, folder=tmp_path / "file" / "gate").passed
    assert len(vision_calls) == 2 * NUM_IMAGES
    assert "verdict cannot be kept" in caplog.text


def test_verdicts_lie_in_the_users_cache(
    model: StartedModel, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    keep_verdict(model, bundle, PASSED)
    assert len(verdicts(tmp_path / "xdg" / "drivekd" / "gate")) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_verdict(model, bundle, PASSED)
    assert len(verdicts(tmp_path / ".cache" / "drivekd" / "gate")) == 1
    assert not Path("relative").exists()


def test_a_replay_that_is_asked_for_reads_no_verdict(
    model: StartedModel, golden: bytes, bundle: Path, folder: Path, vision_calls: list[int]
) -> None:
    keep_verdict(model, bundle, PASSED, folder=folder)
    assert replay_now(model, golden, bundle) != PASSED
    assert len(vision_calls) == NUM_IMAGES
