"""The demo from its first frame to its last ROS line, at toy size: every stage real, only fewer frames and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivekd.demo import pipeline
from drivekd.demo.pipeline import DemoSize, run_demo
from drivekd.demo.ros_workspace import build_workspace
from drivekd.errors import UsageError
from drivekd.runtime import read_bundle
from drivekd.world import WorldSettings

pytestmark = pytest.mark.e2e

TOY = DemoSize(
    world=WorldSettings(train_frames=12, labelled_frames=6, validation_frames=2, test_frames=4, contact_sheet=False),
    overrides=("training.steps=3", "training.batch_size=8", "training.unlabelled_batch_size=8", "optimizer.warmup_steps=1"),
)


@pytest.mark.ros
def test_demo(tmp_path: Path, install: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ROS workspace is the one that all ROS tests share: sources that are unchanged are not built a second time."""
    out = tmp_path / "demo"

    def build_shared(source: Path, place: Path, *, log: Path) -> Path:
        assert (place, log) == (out / "ros", out / "ros" / "build.log")
        return build_workspace(source, install.parent, log=log)

    monkeypatch.setattr(pipeline, "build_workspace", build_shared)
    text = run_demo(out, size=TOY)
    for words in ("majority answer", "SFT student", "distilled student", "black images", "export parity", "ROS answers received"):
        assert words in text
    summary = json.loads((out / "summary.json").read_text())
    assert [row[0] for row in summary["forms"]][1:3] == ["free text", "structured"]
    assert ["questions", "12", "4", "4"] in summary["forms"]
    assert ["ROS answers received", "12 of 12, from held-out frames"] in summary["ros"]
    assert read_bundle(out / "bundle").manifest.cameras == ("CAM_FRONT",), "the node was told of no camera: it has them from here"
    assert (out / "distilled" / "final" / "contract.json").is_file()


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="no demo's folder"):
        run_demo(tmp_path, size=TOY)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_shipped_models_are_small_and_of_one_family() -> None:
    from drivekd.demo.pipeline import MODELS
    from drivekd.distill.teachers.teachers import check_same_tokens
    from drivekd.hf_checkpoint import load_processor
    from drivekd.sample import CAPABILITIES

    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6, "more than the repository should carry"
    first, *others = (load_processor(MODELS / name) for name in ("student", *CAPABILITIES))
    for other in others:
        check_same_tokens(first, other, "shipped models")


def test_prompts_are_the_worlds_own() -> None:
    """The bundle asks what the student was trained to answer, word for word."""
    from drivekd.config import load_config
    from drivekd.demo.pipeline import CONFIG
    from drivekd.world import PROMPTS

    prompts = load_config(CONFIG).prompts
    assert {name: getattr(prompts, name) for name in PROMPTS} == PROMPTS
