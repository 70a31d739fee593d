"""A YAML that names its base holds what differs; a key given twice is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivekd.config import dump_config, load_config
from drivekd.errors import ConfigError

BASE = """
student: {checkpoint: models/s}
teachers: {perception: models/p, planning: models/l}
data: {train: [a.json, b.json]}
signals:
  mixing: sampled
  planning: {weight: 0.5, student_layers: [3]}
training: {steps: 3, batch_size: 2}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.yaml", BASE)


def test_sections_merge_and_values_and_lists_replace(base: Path, tmp_path: Path) -> None:
    child = """
base: ../base.yaml
teachers: {planning: null, reasoning: r}
data: {train: [c.json]}
signals: {planning: {weight: 2}}
"""
    config = load_config(write(tmp_path / "deep" / "child.yaml", child), ["training.steps=9"])
    assert config.student.checkpoint == tmp_path / "models" / "s"  # of the base: from the base's folder
    assert config.data.train == [tmp_path / "deep" / "c.json"]  # of the child: from the child's
    assert config.teachers.paths() == {"perception": tmp_path / "models" / "p", "reasoning": tmp_path / "deep" / "r"}
    assert (config.signals.planning.weight, config.signals.planning.student_layers) == (2.0, [3])
    assert (config.signals.mixing, config.training.steps, config.training.batch_size) == ("sampled", 9, 2)


def test_a_child_without_changes_is_its_base(base: Path, tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "child.yaml", "base: base.yaml\n")) == load_config(base)


def test_the_resolved_tree_needs_no_base(base: Path, tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "child.yaml", "base: base.yaml\nseed: 5\n"))
    base.unlink()
    text = dump_config(config)
    assert "base:" not in text
    assert load_config(write(tmp_path / "run" / "config.yaml", text)) == config


def test_a_base_may_have_a_base(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "a" / "middle.yaml", "base: ../base.yaml\nseed: 1\ntraining: {batch_size: 7}\n")
    config = load_config(write(tmp_path / "child.yaml", "base: a/middle.yaml\nseed: 2\n"))
    assert (config.seed, config.training.batch_size, config.training.steps) == (2, 7, 3)


@pytest.mark.parametrize(
    ("name", "words"), [("none.yaml", "there is no file"), ("[a, b]", "expected the path"), ("3", "expected the path")]
)
def test_a_bad_base_is_named(base: Path, tmp_path: Path, name: str, words: str) -> None:
    path = write(tmp_path / "child.yaml", f"base: {name}\n")
    text = message(path)
    assert text.startswith(f"{path}: base = ")
    assert words in text


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: c.yaml\n")
    write(tmp_path / "c.yaml", "base: b.yaml\n")
    assert "c.yaml: base = " in message(tmp_path / "a.yaml")
    assert "leads back to" in message(tmp_path / "a.yaml")
    assert "leads back to" in message(write(tmp_path / "self.yaml", "base: self.yaml\n"))


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("seed: 1\nstudent: {checkpoint: s}\nseed: 2\n", "seed", (3, 1)),
        ("training:\n  steps: 1\n  batch_size: 2\n  steps: 3\n", "steps", (4, 2)),
        ("signals: {planning: {weight: 1, weight: 2}}\n", "weight", (1, 1)),
        ('seed: 1\n"seed": 2\n', "seed", (2, 1)),
    ],
)
def test_a_key_given_twice_is_named_with_both_lines(tmp_path: Path, text: str, key: str, lines: tuple[int, int]) -> None:
    path = write(tmp_path / "run.yaml", text)
    found = message(path)
    assert found.startswith(f"{path}: ")
    assert f"key {key!r} in line {lines[0]} is there already in line {lines[1]}" in found


def test_the_same_key_in_two_sections_is_fine(base: Path) -> None:
    config = load_config(write(base, BASE + "optimizer: {learning_rate: 1}\nseed: 1\n"))
    assert config.optimizer.learning_rate == 1


def test_yaml_merge_keys_still_work(base: Path) -> None:
    text = BASE.replace("signals:", "signals:\n  perception: &p {weight: 3}\n  reasoning: {<<: *p, loss: cosine}")
    signals = load_config(write(base, text)).signals
    assert (signals.reasoning.weight, signals.reasoning.loss) == (3.0, "cosine")
