"""Confidences go into a bundle: a new digest, the same graphs, and what was of the old one is left out and said."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_bundle import write_small_bundle

from drivekd.errors import BundleError, CheckpointError, UsageError
from drivekd.export import bundle_from_checkpoint
from drivekd.export.calibrated import calibrated_bundle, carry_calibration
from drivekd.export.settings import ExportPlan, ExportSettings
from drivekd.files import checkpoint_digest
from drivekd.runtime import load_bundle
from drivekd.runtime.answers.confidence import Calibration, Measured, calibration_from_bytes, calibration_to_text
from drivekd.runtime.bundle.reader import read_bundle

ENTRY = {"planning": Calibration(2.0, 1.0, 0.5)}
OTHER = {"structured.planning": Calibration(3.0, 0.0, 0.25)}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


def test_in_place(bundle: Path) -> None:
    before = read_bundle(bundle)
    digest, left_out = calibrated_bundle(bundle, ENTRY)
    after = read_bundle(bundle)
    assert (after.digest, left_out) == (digest, [])
    assert digest != before.digest
    assert calibration_from_bytes(after.files["calibration.json"], "x") == ENTRY
    assert {name: after.files[name] for name in before.files} == dict(before.files)
    assert (bundle / "vision.onnx").stat().st_nlink == 1, "no other name leads to its bytes"


def test_as_a_new_bundle_the_old_one_stays(bundle: Path, tmp_path: Path) -> None:
    before = read_bundle(bundle).digest
    calibrated_bundle(bundle, ENTRY, tmp_path / "new")
    assert read_bundle(bundle).digest == before
    assert (tmp_path / "new" / "vision.onnx").stat().st_ino != (bundle / "vision.onnx").stat().st_ino
    with pytest.raises(UsageError, match="is not empty"):
        calibrated_bundle(bundle, ENTRY, tmp_path / "new")


def test_entries_of_other_kinds_stay(bundle: Path) -> None:
    calibrated_bundle(bundle, OTHER)
    first, _ = calibrated_bundle(bundle, ENTRY)
    assert calibration_from_bytes(read_bundle(bundle).files["calibration.json"], "x") == OTHER | ENTRY
    assert calibrated_bundle(bundle, ENTRY)[0] == first, "the same confidences, the same digest"


def test_signature_and_engines_are_of_the_bundle_that_was(bundle: Path) -> None:
    (bundle / "bundle.sig").write_text("{}", encoding="utf-8")
    (bundle / "engines").mkdir()
    _, left_out = calibrated_bundle(bundle, ENTRY)
    assert [told.partition(" ")[2][:10] for told in left_out] == ["signature ", "engines we"]
    assert not (bundle / "bundle.sig").exists() and not (bundle / "engines").exists()


def test_a_bundle_that_is_not_whole_is_left_alone(bundle: Path) -> None:
    (bundle / "vision.onnx").write_bytes(b"changed")
    files = sorted(path.name for path in bundle.iterdir())
    with pytest.raises(BundleError, match=r"vision\.onnx was changed"):
        calibrated_bundle(bundle, ENTRY)
    assert sorted(path.name for path in bundle.iterdir()) == files


def measured(model: str) -> Calibration:
    return Calibration(2.0, 1.0, 0.5, Measured("sha256:d", model, 60, 60, 15, 0.2, 0.05, 0.1))


def test_a_checkpoints_confidences_are_carried_where_they_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = tmp_path / "final"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    own = {"planning": measured(checkpoint_digest(checkpoint))}
    carry_calibration(checkpoint, tmp_path, same_weights=True)
    assert not (tmp_path / "calibration.json").exists(), "there is none"

    (checkpoint / "calibration.json").write_text(
        calibration_to_text({**own, "reasoning": measured("sha256:other"), "perception": Calibration(1.0, 0.0, 0.5)}),
        encoding="utf-8",
    )
    carry_calibration(checkpoint, tmp_path, same_weights=False)
    assert not (tmp_path / "calibration.json").exists()
    assert "measured on weights that are not the bundle's, and is left out; calibrate the bundle" in caplog.text
    carry_calibration(checkpoint, tmp_path, same_weights=True)
    assert calibration_from_bytes((tmp_path / "calibration.json").read_bytes(), "x") == own
    assert "reasoning, perception was not measured on these weights" in caplog.text

    (checkpoint / "calibration.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"calibration\.json cannot be used"):
        carry_calibration(checkpoint, tmp_path, same_weights=True)


@pytest.mark.numerics
def test_an_export_carries_them(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "final"
    shutil.copytree(checkpoint, copy)
    own = {"planning": measured(checkpoint_digest(copy))}
    (copy / "calibration.json").write_text(calibration_to_text(own), encoding="utf-8")
    plan = ExportPlan(settings=ExportSettings(dialects=["concat"]))
    bundle_from_checkpoint(copy, tmp_path / "bundle", plan=plan)
    assert calibration_from_bytes(read_bundle(tmp_path / "bundle").files["calibration.json"], "x") == own
    with load_bundle(tmp_path / "bundle") as session:
        answer = session.answer({"CAM_FRONT": np.zeros((9, 9, 3), np.uint8)}, capabilities=["planning"], max_new_tokens=2)[
            "planning"
        ]
        asked_for_json = session.answer(
            {"CAM_FRONT": np.zeros((9, 9, 3), np.uint8)}, capabilities=["planning"], structured=True, max_new_tokens=2
        )["planning"]
    assert answer.calibrated and answer.confidence == own["planning"].confidence(answer.mean_logprob)
    assert not asked_for_json.calibrated and asked_for_json.confidence is None, "JSON has entries of its own"


def test_text_reads_back() -> None:
    assert calibration_from_bytes(calibration_to_text(ENTRY | OTHER).encode(), "x") == ENTRY | OTHER
