"""`drivekd export` and `drivekd check` as their user meets them: what is printed, what is refused, what is left on the disk.

Each exit code once comes from a process of its own; the rest is asked in this one, which has torch already.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_fixtures import Run
from places import ROOT

from drivekd.runtime import read_bundle
from drivekd.world.build import WorldSettings, build_world

pytestmark = pytest.mark.e2e

PROMPTS = ("perception", "reasoning", "planning")
SHIPPED = ROOT / "drivekd" / "demo" / "models" / "student"


def drivekd(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("drivekd")), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's trained student and pictures that it knows: random weights are lost in four bits. And a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(checkpoint, folder / "tiny")
    shutil.copytree(SHIPPED, folder / "student")
    build_world(folder / "world", WorldSettings(train_frames=4, labelled_frames=4, validation_frames=1, test_frames=1))
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> subprocess.CompletedProcess[str]:
    settings = ("calibration=world/train.json", "calibration_samples=4", "evaluation=world/train.json", "sensitivity=true")
    overrides = [word for setting in settings for word in ("--set", setting)]
    return drivekd(folder, "export", "student", "--out", "bundle", "--precision", "int4", *overrides)


@pytest.fixture
def here(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """drivekd ARGUMENTS in the folder, in this process."""
    monkeypatch.chdir(folder)
    return run


def test_int4_prints_parity_of_both_precisions(folder: Path, exported: subprocess.CompletedProcess[str]) -> None:
    assert exported.returncode == 0, exported.stderr
    assert "parity of bundle with student, worst first" in exported.stdout
    for word in ("decoder.gqa", "decoder.concat", "int4", "int8", "fp32", "passed"):
        assert word in exported.stdout
    assert "FAILED" not in exported.stdout
    assert "accuracy on world/train.json: vision int8, decoder int4" in exported.stdout
    assert exported.stdout.count("worst first") == 3, "parity, and the sensitivity of two graphs"
    manifest = read_bundle(folder / "bundle").manifest
    assert manifest.precision == "vision int8, decoder int4"
    assert {name: graph.precision for name, graph in manifest.graphs.items()} == {
        "vision": "int8",
        "decoder.gqa": "int4",
        "decoder.concat": "int4",
    }
    assert manifest.embedding.precision == "int8"
    assert "costs in words" in exported.stdout
    assert manifest.language[0]["tokens"] > 0
    assert list(json.loads((folder / "bundle" / "schemas.json").read_bytes())) == list(manifest.prompts)


def test_check_shows_graphs_and_passes_its_gate(folder: Path, here: Run, exported: subprocess.CompletedProcess[str]) -> None:
    code, stdout, stderr = here("check", "bundle", "--verbose")
    assert code == 0, stderr
    for word in ("bundle is sound", "parity gate", "decoder.gqa", "image_embeds", "int4", "embedding", "signature", "engines"):
        assert word in stdout
    digest = read_bundle(folder / "bundle").digest
    assert here("check", "bundle", "--expect-digest", digest)[0] == 0
    code, _, stderr = here("check", "bundle", "--expect-digest", "sha256:" + "0" * 64)
    assert code == 1
    assert "expected the bundle" in stderr


def test_bisect_finds_nothing_in_a_sound_bundle(here: Run, exported: subprocess.CompletedProcess[str]) -> None:
    code, stdout, stderr = here("check", "bundle", "--bisect")
    assert code == 0, stderr
    assert "layers.0.output" in stdout


def test_a_signed_bundle(folder: Path, here: Run, exported: subprocess.CompletedProcess[str]) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(*private))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    signed = Path(shutil.copytree(folder / "bundle", folder / "signed"))
    code, _, stderr = here("export", "signed", "--sign", "key.pem")
    assert code == 0, stderr
    assert here("check", signed, "--public-key", "key.pub")[0] == 0
    code, _, stderr = here("check", "bundle", "--public-key", "key.pub")
    assert code == 1
    assert "sign" in stderr


def test_the_kit_and_its_referee(folder: Path, here: Run, exported: subprocess.CompletedProcess[str]) -> None:
    assert drivekd(folder, "export", "bundle", "--kit", "edgellm").returncode == 2, "it needs the checkpoint"
    code, _, stderr = here("export", "bundle", "--kit", "edgellm", "--checkpoint", "student")
    assert code == 0, stderr
    kit = folder / "bundle-edgellm"
    assert {"README.md", "input.json", "expected.json", "checkpoint"} <= {path.name for path in kit.iterdir()}
    (folder / "garbage.json").write_text(json.dumps({"answers": {name: {"tokens": [5, 5, 5]} for name in PROMPTS}}))
    code, _, stderr = here("check", "bundle", "--outputs", "garbage.json")
    assert code == 1
    assert "failed" in stderr


def test_trt_without_tensorrt_leaves_the_bundle(folder: Path, exported: subprocess.CompletedProcess[str]) -> None:
    before = read_bundle(folder / "bundle").digest
    done = drivekd(folder, "export", "bundle", "--trt")
    assert done.returncode == 1
    assert "TensorRT is not installed" in done.stderr
    assert "JetPack" in done.stderr
    assert read_bundle(folder / "bundle").digest == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("student",), 2, "give --out BUNDLE"),
        (("student", "--out", "x", "--precision", "int3"), 2, "this version exports fp32, fp16, int8, int4"),
        (("student", "--out", "x", "--precision", "int4", "--set", "bits=5"), 2, "calibration=RECORDS.json"),
        (("student", "--out", "x", "--precision", "int8", "--set", "calibration=none.json"), 1, "none.json"),
        (("student", "--out", "x", "--set", "evaluation=none.json"), 1, "none.json"),
        (("student", "--out", "x", "--set", "schemas=none.json"), 1, "none.json: schemas cannot be read"),
        (("student", "--out", "x", "--set", "schemas=world/train.json"), 1, "schemas.json"),
        (("student", "--out", "x", "--kit", "other"), 2, "this version has: edgellm"),
        (("nowhere", "--out", "x"), 1, "no such checkpoint directory"),
        (("tiny", "--out", "x", "--precision", "int4", "--set", "vision=fp16", "--set", "exclude=[layer.7]"), 2, "layer.7"),
        (("bundle",), 2, "is a bundle already"),
        (("bundle", "--trt", "--precision", "int8"), 2, "are for the checkpoint that it comes from"),
    ],
)
def test_what_is_asked_wrongly(
    folder: Path, here: Run, exported: subprocess.CompletedProcess[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = {path.name for path in folder.iterdir()}
    found, _, stderr = here("export", *arguments)
    assert found == code, stderr
    assert message in stderr
    assert "Traceback" not in stderr
    assert {path.name for path in folder.iterdir()} == before
