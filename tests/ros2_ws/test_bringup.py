"""What is shipped beside the code: parameters, DDS profiles, the launch file, wording, and the API of Humble. No ROS."""

from __future__ import annotations

import ast
import importlib.util
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from drivekd_ros.state.settings import SPECS, settings_from_values
from places import ROOT

SRC = ROOT / "ros2_ws" / "src"
BRINGUP = SRC / "drivekd_bringup"
PYTHON = sorted(SRC.rglob("*.py"))
WORDING = ("advisory output", "developed to no asil", "never the sole input to actuation")


@pytest.mark.parametrize("file", sorted((BRINGUP / "params").glob("*.yaml")), ids=lambda file: file.stem)
def test_parameter_files_name_known_parameters_of_the_right_type(file: Path) -> None:
    values = yaml.safe_load(file.read_text())["/**"]["ros__parameters"]
    defaults = {spec.name: spec.default for spec in SPECS}
    for name, value in values.items():
        assert type(value) is type(defaults[name]), f"{name}: rclpy refuses {value!r}"
    settings = settings_from_values(values | {"bundle": "folder"})
    assert settings.topics(settings.cameras)


def test_fast_dds_profile_has_the_measured_sizes() -> None:
    text = (BRINGUP / "dds" / "fastdds.xml").read_text()
    sizes = {element.tag.split("}")[1]: element.text for element in ET.fromstring(text).iter()}
    assert int(sizes["segment_size"]) == 64 * 2**20
    assert int(sizes["maxMessageSize"]) == 16 * 2**20
    assert int(sizes["sendBufferSize"]) == int(sizes["receiveBufferSize"]) == 4 * 2**20
    assert sizes["useBuiltinTransports"] == "false"


def test_cyclone_dds_configuration_is_well_formed() -> None:
    assert ET.fromstring((BRINGUP / "dds" / "cyclonedds.xml").read_text()).tag.endswith("CycloneDDS")


class Recorder(ModuleType):
    """A module of the launch system in which every name is a call that is written down."""

    def __init__(self, name: str, calls: list[tuple[str, tuple, dict]]) -> None:
        super().__init__(name)
        self._calls = calls
        self.__path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: object, **kwargs: object) -> tuple[str, tuple, dict]:
            self._calls.append((name, args, kwargs))
            return self._calls[-1]

        return call


def test_the_launch_file_starts_the_node_with_profile_parameters_and_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple, dict]] = []
    for name in ("launch", "launch.actions", "launch.substitutions", "launch_ros", "launch_ros.actions"):
        monkeypatch.setitem(sys.modules, name, Recorder(name, calls))
    packages = ModuleType("ament_index_python.packages")
    packages.get_package_share_directory = lambda package: str(SRC / package)
    monkeypatch.setitem(sys.modules, "ament_index_python", ModuleType("ament_index_python"))
    monkeypatch.setitem(sys.modules, "ament_index_python.packages", packages)
    file = BRINGUP / "launch" / "drivekd.launch.py"
    spec = importlib.util.spec_from_file_location("drivekd_launch", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate_launch_description()
    variables = {args[0]: args[1] for name, args, _ in calls if name == "SetEnvironmentVariable"}
    assert set(variables) == {"FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE", "CYCLONEDDS_URI"}
    assert all(Path(path.removeprefix("file://")).is_file() for path in variables.values())
    node = next(kwargs for name, _, kwargs in calls if name == "Node")
    assert (node["package"], node["executable"], node["name"]) == ("drivekd_ros", "node", "drivekd")
    default = next(
        kwargs["default_value"] for name, args, kwargs in calls if (name, *args[:1]) == ("DeclareLaunchArgument", "params")
    )
    assert (BRINGUP / "params" / f"{default}.yaml").is_file()
    assert any(all(words in kwargs.get("msg", "").lower() for words in WORDING) for name, _, kwargs in calls)


@pytest.mark.parametrize(
    "file",
    [*SRC.glob("*/package.xml"), *SRC.glob("*/README.md"), *SRC.glob("*/msg/Answer.msg"), *SRC.glob("*/action/*.action")],
    ids=lambda file: f"{file.parent.name}/{file.name}",
)
def test_the_warning_stands_everywhere(file: Path) -> None:
    text = " ".join(file.read_text().lower().split())
    assert all(words in text for words in WORDING)


def test_every_package_has_a_readme() -> None:
    assert {file.parent.name for file in SRC.glob("*/README.md")} == {file.parent.name for file in SRC.glob("*/package.xml")}


@pytest.mark.parametrize("file", PYTHON, ids=lambda file: file.stem)
def test_sources_keep_to_python_3_10_and_humbles_rclpy(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 10))
    for node in ast.walk(tree):
        if isinstance(node, ast.With):  # a context manager only since Jazzy
            assert not any("rclpy.init" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.ClassDef):  # NamedTuple with Generic needs 3.11
            assert not {"NamedTuple", "Generic"} <= {ast.unparse(base).split("[")[0] for base in node.bases}
    text = file.read_text()
    for word in ("MessageInfo", "EventsExecutor", "typing import Self", "datetime.UTC", "tomllib", "ExceptionGroup"):
        assert word not in text, f"Humble or Python 3.10 lacks {word}"


def test_messages_say_the_unit_of_every_number() -> None:
    for file in [*SRC.rglob("*.msg"), *SRC.rglob("*.action")]:
        for line in file.read_text().splitlines():
            if line.startswith("float32") and ("_ms" in line or "_mps" in line):
                assert "[ms]" in line or "[m/s]" in line, f"{file.name}: {line}"
