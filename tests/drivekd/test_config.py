"""Bad configurations are refused before anything heavy is loaded, naming file, key, value and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import pytest
import yaml
from pydantic import BaseModel

from drivekd.config import RunConfig, Section, dump_config, load_config
from drivekd.errors import ConfigError

MINIMAL: dict[str, Any] = {"student": {"checkpoint": "s"}, "data": {"train": ["t.json"]}, "training": {"steps": 3}}


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    return write(tmp_path / "run.yaml", MINIMAL)


def write(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def with_key(key: str, value: object) -> dict[str, Any]:
    """MINIMAL with one key set by its dotted name."""
    tree: dict[str, Any] = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
    node[leaf] = value
    return tree


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def sections(root: type[BaseModel] = RunConfig) -> list[type[BaseModel]]:
    inner = [field.annotation for field in root.model_fields.values()]
    return [root, *(found for kind in inner if is_section(kind) for found in sections(kind))]


def is_section(kind: object) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def test_the_minimum_is_enough(run_yaml: Path) -> None:
    config = load_config(run_yaml)
    assert config.training.steps == 3
    assert config.teachers.paths() == {}


@pytest.mark.parametrize("section", sections())
def test_every_field_has_a_sentence_and_a_safe_type(section: type[BaseModel]) -> None:
    assert section.model_config["extra"] == "forbid"
    nested = {
        name for name, f in section.model_fields.items() if isinstance(f.annotation, type) and issubclass(f.annotation, Section)
    }
    undocumented = [name for name, f in section.model_fields.items() if name not in nested and not f.description]
    assert undocumented in ([], ["perception", "reasoning", "planning"])  # the three prompts speak for themselves


# --- unknown keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("sed", ["seed", "student", "training"]),
        ("training.step", ["steps", "batch_size", "keep_checkpoints"]),
        ("signals.planning.wieght", ["weight", "student_layers"]),
        ("teachers.foresight", ["perception", "reasoning", "planning"]),
    ],
)
def test_an_unknown_key_is_named_with_file_and_known_keys(tmp_path: Path, key: str, known: list[str]) -> None:
    path = write(tmp_path / "run.yaml", with_key(key, 1))
    text = message(path)
    assert text.startswith(f"{path}: unknown key {key};")
    assert all(name in text.partition("known here: ")[2].split(", ") for name in known)


def test_every_fault_has_its_own_line(tmp_path: Path) -> None:
    tree = with_key("sed", 1) | {"training": {"stps": 2}}
    text = message(write(tmp_path / "run.yaml", tree))
    assert [line.split(": ")[1] for line in sorted(text.splitlines())] == [
        "training.steps is missing; it is required",
        "unknown key sed; known here",
        "unknown key training.stps; known here",
    ]


# --- wrong values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "found", "right"),
    [
        ("training.steps", "many", "'many'", "integer"),
        ("training.steps", 0, "0", "greater than or equal to 1"),
        ("training.precision", "fp8", "'fp8'", "'fp32' or 'bf16'"),
        ("training.device", "tpu", "'tpu'", "cuda"),
        ("optimizer.learning_rate", -1.0, "-1.0", "greater than 0"),
        ("signals.reasoning.weight", -2, "-2", "greater than or equal to 0"),
        ("signals.grouping", "stride", "'stride'", "'window' or 'proportional'"),
        ("projection.stages", [3], "3", "1 or 2"),
        ("data.train", [], "[]", "at least 1"),
        ("data.train", "t.json", "t.json", "list"),
        ("data.capabilities", ["steering"], "'steering'", "'perception', 'reasoning' or 'planning'"),
        ("student.train", ["lm_head"], "'lm_head'", "'vision_encoder', 'projector' or 'language_model'"),
        ("student.train", [], "[]", "at least 1"),
        ("seed", -1, "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(tmp_path: Path, key: str, value: object, found: str, right: str) -> None:
    path = write(tmp_path / "run.yaml", with_key(key, value))
    text = message(path)
    assert text.startswith(f"{path}: {key}")
    assert found in text
    assert right in text


@pytest.mark.parametrize("key", ["student", "data", "training"])
def test_a_missing_section_is_named(tmp_path: Path, key: str) -> None:
    tree = {name: value for name, value in MINIMAL.items() if name != key}
    assert f"{key} is missing" in message(write(tmp_path / "run.yaml", tree))


def test_unlabelled_samples_need_records_and_a_teacher(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", with_key("training.unlabelled_batch_size", 2))
    assert "data.unlabelled names no file" in message(path)
    assert "at least one teacher" in message(path, "data.unlabelled=[u.json]")
    config = load_config(path, ["data.unlabelled=[u.json]", "teachers.planning=t"])
    assert config.training.unlabelled_batch_size == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "expected a mapping"), ("", "found NoneType"), ("a: [1", "not valid YAML"), ("a: \x00", "not valid YAML")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert message(path).startswith(f"{path}: ")
    assert words in message(path)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in message(tmp_path / "none.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x80\x81")
    assert "not valid YAML" in message(tmp_path / "image.yaml")


# --- overrides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.steps=7", 7),
        ("seed=5", 5),
        ("optimizer.learning_rate=1e-3", 1e-3),  # PyYAML reads 1e-3 as a string
        ("signals.reasoning.student_layers=[0, -2]", [0, -2]),
        ("prompts.planning=Drive? a=b: yes", "Drive? a=b: yes"),
        ("data.image_root=null", None),
        ("prompts.variables={ego_speed_mps: 3}", {"ego_speed_mps": 3}),
    ],
)
def test_an_override_is_yaml_and_reaches_its_key(run_yaml: Path, override: str, value: object) -> None:
    if override.startswith("prompts.planning"):
        override = override.replace("=", "='", 1) + "'"  # a value with a colon is quoted, as in the YAML itself
    found: Any = load_config(run_yaml, [override])
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value


def test_a_later_override_wins(run_yaml: Path) -> None:
    assert load_config(run_yaml, ["training.steps=7", "training.steps=8"]).training.steps == 8


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("training.steps=[1", "not valid YAML"),
        ("training.steps.more=1", "steps is a value, not a section"),
        ("training.stepps=1", "unknown key training.stepps"),
        ("training.steps=x", "training.steps = 'x'"),
    ],
)
def test_a_bad_override_is_refused(run_yaml: Path, override: str, words: str) -> None:
    assert words in message(run_yaml, override)


# --- paths ----------------------------------------------------------------------------------------------------------

PATHS = {
    "student.checkpoint": "s",
    "teachers.perception": "p",
    "teachers.reasoning": "r",
    "teachers.planning": "l",
    "data.train": ["a", "b"],
    "data.unlabelled": ["u"],
    "signals.layers": "y.json",
    "cache.directory": "c",
    "data.validation": "v",
    "data.image_root": "i",
}


def path_values(config: RunConfig) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for key in PATHS:
        section, leaf = key.split(".")
        value = getattr(getattr(config, section), leaf)
        found[key] = value if isinstance(value, list) else [value]
    return found


def test_every_path_field_is_tested_here() -> None:
    fields = {
        f"{section}.{name}"
        for section, outer in RunConfig.model_fields.items()
        if is_section(outer.annotation)
        for name, field in outer.annotation.model_fields.items()
        if "Path" in str(field.annotation)
    }
    assert fields == set(PATHS)


def test_relative_paths_start_at_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    tree = with_key("training.steps", 1)
    for key, value in PATHS.items():
        section, leaf = key.split(".")
        tree.setdefault(section, {})[leaf] = value
    path = write(tmp_path / "deep" / "run.yaml", tree)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("deep/run.yaml"))
    assert path_values(config) == {
        key: [path.parent / name for name in (value if isinstance(value, list) else [value])] for key, value in PATHS.items()
    }


def test_absolute_paths_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", with_key("student.checkpoint", "/models/1b"))
    assert load_config(path).student.checkpoint == Path("/models/1b")


def test_paths_of_overrides_start_at_the_current_folder(run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(run_yaml, ["teachers.planning=t", "data.train=[a, b]"])
    assert config.teachers.planning == tmp_path / "elsewhere" / "t"
    assert config.data.train == [tmp_path / "elsewhere" / "a", tmp_path / "elsewhere" / "b"]
    assert config.student.checkpoint == tmp_path / "s"


# --- round trip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["student.checkpoint=relative/s", "teachers.reasoning=../t", "data.validation=v.json"],
        [
            "prompts.planning='Wohin? ≥ {ego_speed_mps}: \\n \"x\"'",
            "signals.planning.student_layers=[-1, 0]",
            "projection.stages=[2]",
        ],
        ["prompts.variables={ego_speed_mps: 3, city: 'no', half: 0.5}"],
    ],
)
def test_the_resolved_tree_reads_back_equal_from_another_folder(
    run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    config = load_config(run_yaml, overrides)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    monkeypatch.chdir(tmp_path / "run")
    assert load_config(Path("config.yaml")) == config
