"""`signals.layers`: the layers that `drivekd analyze` chose, where a capability names none itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun, start_trainer

from drivekd.config import SignalConfig, SignalsConfig
from drivekd.distill.teachers.layer_choices import signal_config
from drivekd.errors import ConfigError

pytestmark = pytest.mark.numerics

CHOICE = {"student_layers": [1], "teacher_layers": [1, 2], "signal": "attention", "reason": "a test"}


def analysis(path: Path, **capabilities: Any) -> Path:
    """As `drivekd analyze` writes it, for a student of 3 and teachers of 4 layers."""
    pair = {
        "student": {"checkpoint": "s", "depth": 3},
        "teacher": {name: {"checkpoint": "t", "depth": 4} for name in capabilities},
    }
    path.write_text(json.dumps({"pair": pair, "capabilities": capabilities, "curves": {}, "samples": {}}))
    return path


def chosen(path: Path, depths: tuple[int, int] = (3, 4), **planning: Any) -> SignalConfig:
    return signal_config("planning", SignalsConfig(layers=path, planning=SignalConfig(**planning)), *depths)


def test_a_capability_without_layers_gets_the_files(tmp_path: Path) -> None:
    found = chosen(analysis(tmp_path / "a.json", planning=CHOICE), weight=0.25, form="full_map")
    assert (found.student_layers, found.teacher_layers) == ([1], [1, 2])
    assert (found.weight, found.form, found.loss) == (0.25, "full_map", "mse")


@pytest.mark.parametrize("own", [{"student_layers": [0]}, {"teacher_layers": [-1]}, {"loss": "kl"}])
def test_what_a_capability_says_itself_stays(tmp_path: Path, own: dict[str, Any]) -> None:
    path = analysis(tmp_path / "a.json", planning=CHOICE)
    assert chosen(path, **own) == SignalConfig(**own)


@pytest.mark.parametrize(
    ("signal", "loss", "expected"),
    [
        ("hidden", "mse", "hidden"),
        ("hidden", "cosine", "hidden"),
        ("attention", "cosine", "cosine"),
        ("attention", "hidden", "hidden"),
    ],
)
def test_layers_chosen_for_hidden_states_compare_hidden_states(tmp_path: Path, signal: str, loss: str, expected: str) -> None:
    assert chosen(analysis(tmp_path / "a.json", planning=CHOICE | {"signal": signal}), loss=loss).loss == expected


def test_without_a_file_nothing_changes() -> None:
    signals = SignalsConfig(planning=SignalConfig(weight=3))
    assert signal_config("planning", signals, 3, 4) is signals.planning


@pytest.mark.parametrize(
    ("depths", "words"),
    [((5, 4), "with a student of 3 layers, this run's has 5"), ((3, 7), "a teacher of 4 layers, this run's has 7")],
)
def test_another_pair_is_refused(tmp_path: Path, depths: tuple[int, int], words: str) -> None:
    path = analysis(tmp_path / "a.json", planning=CHOICE)
    with pytest.raises(ConfigError, match=words) as caught:
        chosen(path, depths)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("capabilities", [{"perception": CHOICE}, {"planning": CHOICE | {"teacher_layers": []}}])
def test_a_capability_that_was_not_analysed_is_named(tmp_path: Path, capabilities: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="chooses no layers of student and teacher for planning"):
        chosen(analysis(tmp_path / "a.json", **capabilities))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("{}", "pair: Field required"),
        ('{"pair": {"student": {"depth": 3}}, "capabilities": {"steering": {}}}', "steering"),
        (
            '{"pair": {"student": {"depth": 3}}, "capabilities": {"planning": {"student_layers": "all"}}}',
            r"capabilities\.planning\.student_layers",
        ),
    ],
)
def test_a_file_that_is_no_analysis_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        chosen(tmp_path / "a.json")
    assert str(caught.value).startswith(f"signals.layers = {tmp_path / 'a.json'}: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read .*`drivekd analyze` writes it"):
        chosen(tmp_path / "none.json")


def test_a_run_distils_the_files_layers(tiny_run: TinyRun, tmp_path: Path) -> None:
    path = analysis(tmp_path / "a.json", perception=CHOICE, reasoning=CHOICE, planning=CHOICE | {"signal": "hidden"})
    trainer = start_trainer(tiny_run, f"signals.layers={path}", "signals.perception.student_layers=[0]")
    assert trainer.teachers is not None
    signals = trainer.teachers.signals

    def layers(name: Any) -> tuple[str, Sequence[int], Sequence[int]]:
        return signals[name].loss, signals[name].student_layers, signals[name].teacher_layers

    assert layers("reasoning") == ("mse", (1,), (1, 2))
    assert layers("planning") == ("hidden", (1,), (1, 2))
    assert layers("perception") == ("mse", (0,), (0,))
    assert set(trainer.step()["loss"]) == {"ce", "perception", "reasoning", "planning"}
