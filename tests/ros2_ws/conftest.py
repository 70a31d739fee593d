"""What every ROS test needs: the pure modules are imported from the sources, the node runs from the built workspace."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from places import ROOT, TESTS

from drivekd.demo.ros_workspace import ChildProcess, child_process, ros_environment

FAKE_NODE = TESTS / "cases" / "fake_node.py"
sys.path.insert(0, str(ROOT / "ros2_ws" / "src" / "drivekd_ros"))


@pytest.fixture(scope="session")
def environment(install: Path) -> dict[str, str]:
    """One environment, so one ROS domain, for this process and every process that a test starts."""
    environment = ros_environment(install)
    os.environ.update({key: value for key, value in environment.items() if key != "LD_LIBRARY_PATH"})
    return environment


@pytest.fixture(scope="session")
def messages(install: Path, environment: dict[str, str]) -> None:
    """Make drivekd_msgs importable here. LD_LIBRARY_PATH counts only at a process's start: load the libraries by path."""
    sys.path.insert(0, str(next((install / "drivekd_msgs").glob("lib/python3*/site-packages"))))
    pending = sorted((install / "drivekd_msgs" / "lib").glob("*.so"))
    while pending:
        refused = [library for library in pending if not _loaded(library)]
        assert len(refused) < len(pending), f"cannot load {refused}"
        pending = refused


def _loaded(library: Path) -> bool:
    """Load a library; False while one that it needs is not loaded yet."""
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


StartNode = Callable[..., ChildProcess]


@contextmanager
def node_starter(environment: dict[str, str]) -> Iterator[StartNode]:
    """Gives start(bundle, "name:=value", ...): the real node with the fake session, in a process of its own."""
    with ExitStack() as stack:

        def start(bundle: Path, *parameters: str) -> ChildProcess:
            words = [word for value in (f"bundle:={bundle}", *parameters) for word in ("-p", value)]
            return stack.enter_context(child_process([sys.executable, str(FAKE_NODE), "--ros-args", *words], environment))

        yield start


@pytest.fixture
def start_node(environment: dict[str, str]) -> Iterator[StartNode]:
    """Nodes that end with the test: all have one name, and two at once would answer each other's calls."""
    with node_starter(environment) as start:
        yield start


@pytest.fixture(scope="module")
def start_module_node(environment: dict[str, str]) -> Iterator[StartNode]:
    """A node for a whole module of tests."""
    with node_starter(environment) as start:
        yield start
