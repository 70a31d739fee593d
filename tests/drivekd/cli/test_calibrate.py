"""`drivekd calibrate` on a checkpoint: beside the weights, where it changes no digest; entries of other weights go."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivekd.cli.calibrate import calibrate_command
from drivekd.evaluate.confidence.calibrate import CalibrationReport, CalibrationRequest
from drivekd.files import checkpoint_digest
from drivekd.runtime.answers.confidence import Calibration, Measured, calibration_from_bytes, calibration_to_text


def entry(model: str, slope: float = 1.0) -> Calibration:
    return Calibration(slope, 0.0, 0.5, Measured("sha256:d", model, 60, 60, 15, 0.2, 0.05, 0.1))


def test_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = tmp_path / "final"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    digest = checkpoint_digest(checkpoint)
    report = CalibrationReport({"planning": entry(digest, 2.0)}, [], [], digest)
    monkeypatch.setattr("drivekd.cli.calibrate.calibrate", lambda request: report)
    before = {"planning": entry(digest), "reasoning": entry("sha256:other"), "structured.planning": entry(digest)}
    (checkpoint / "calibration.json").write_text(calibration_to_text(before), encoding="utf-8")

    said: list[str] = []
    calibrate_command(CalibrationRequest(checkpoint, tmp_path / "x.json"), None, said.append)
    found = calibration_from_bytes((checkpoint / "calibration.json").read_bytes(), "x")
    assert found == {"structured.planning": entry(digest), "planning": entry(digest, 2.0)}
    assert "reasoning was measured on other weights and is left out" in caplog.text
    assert said == [f"written: {checkpoint / 'calibration.json'}"]
    assert checkpoint_digest(checkpoint) == digest

    calibrate_command(CalibrationRequest(checkpoint, tmp_path / "x.json"), tmp_path / "elsewhere", said.append)
    assert (tmp_path / "elsewhere" / "calibration.json").is_file()
