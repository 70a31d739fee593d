"""Each row of the paper's Table 3 is one file of configs/ablations: it loads, and with tiny stand-ins it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import ROOT
from tiny_run import TinyRun

from drivekd.config import RunConfig, load_config
from drivekd.distill.training.train import train
from drivekd.log import read_metrics
from drivekd.sample import CAPABILITIES

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("one_thread")]

CONFIGS = ROOT / "configs"
ROWS = {
    "sft": set[str](),
    **{f"{name}-only": {name} for name in CAPABILITIES},
    "full-first": {"perception"},
    "middle-text-to-vision": {"reasoning"},
    "full-penultimate": {"planning"},
    **{name: set(CAPABILITIES) for name in ("cosine", "kl", "hidden", "no-projection", "stage-1", "stage-2", "agp")},
}


def stand_ins(run: TinyRun, name: str, folder: Path) -> list[str]:
    """Overrides that put tiny models and six pictures in the places of the real ones."""
    teachers = [f"teachers.{capability}={run.teacher}" for capability in ROWS[name]]
    data = [
        f"student.checkpoint={run.student}",
        f"data.train=[{run.folder / 'train.json'}]",
        f"cache.directory={folder / 'cache'}",
    ]
    return [*data, *teachers, "training.steps=1", "training.batch_size=6", "training.device=cpu", "training.threads=1"]


def test_every_row_has_a_file_and_every_file_is_a_row() -> None:
    assert {path.stem for path in (CONFIGS / "ablations").iterdir()} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_the_base_in_what_it_says_alone(name: str) -> None:
    base = load_config(CONFIGS / "internvl3-1b.yaml").model_dump()
    row = load_config(CONFIGS / "ablations" / f"{name}.yaml")
    changed = {section for section, values in row.model_dump().items() if values != base[section]}
    assert changed <= {"teachers", "data", "signals", "projection"}
    assert (name == "agp") == (changed == set())  # the base is Drive-KD
    assert set(row.teachers.paths()) == ROWS[name]


def test_forms_and_losses_are_the_rows_own() -> None:
    def row(name: str) -> RunConfig:
        return load_config(CONFIGS / "ablations" / f"{name}.yaml")

    assert row("full-first").signals.perception.form == "full_map"
    assert row("middle-text-to-vision").signals.reasoning.form == "text_to_vision"
    assert row("full-penultimate").signals.planning.form == "full_map"
    for loss in ("cosine", "kl", "hidden"):
        signals = row(loss).signals
        assert [getattr(signals, name).loss for name in CAPABILITIES] == [loss] * 3
        assert signals.perception.weight == 0.5  # the base's: sections merge key by key
    assert (row("no-projection").projection.method, row("stage-1").projection.stages) == ("sum", [1])


@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains(tiny_run: TinyRun, tmp_path: Path, name: str) -> None:
    config = load_config(CONFIGS / "ablations" / f"{name}.yaml", stand_ins(tiny_run, name, tmp_path))
    train(config, tmp_path / "run")
    (record,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert set(record["loss"]) == {"ce", *ROWS[name]}
    assert all(0 < value < 100 for value in record["loss"].values())
    assert load_config(tmp_path / "run" / "config.yaml") == config  # the resolved tree needs no base
