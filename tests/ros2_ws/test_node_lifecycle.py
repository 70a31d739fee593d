"""Transitions, signals, and the ways in which the node's program ends. Each node is a process of its own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drivekd.demo.ros_workspace import ChildProcess

pytestmark = pytest.mark.ros

StartNode = Callable[..., ChildProcess]

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4  # lifecycle_msgs/Transition


def fake_bundle(folder: Path, **values: object) -> Path:
    (folder / "fake.json").write_text(json.dumps(values))
    return folder


def wait_for(child: ChildProcess, words: str) -> None:
    due_s = time.monotonic() + 20
    while words not in child.tail():
        assert child.process.poll() is None, child.tail()
        assert time.monotonic() < due_s, child.tail()
        time.sleep(0.02)


def stamp(header) -> tuple[int, int]:
    return header.stamp.sec, header.stamp.nanosec


def show_some(probe) -> set[tuple[int, int]]:
    """Pictures for a quarter of a second; their stamps, since answers to earlier ones may still be on their way."""
    shown = set()
    for _ in range(5):
        shown.add(stamp(probe.show((0, 255, 0))))
        probe.spin_for(0.05)
    return shown


def test_every_transition_and_a_wrong_one(messages: None, start_node: StartNode, tmp_path: Path) -> None:
    from probe import GREEN, Context

    node = start_node(fake_bundle(tmp_path), "autostart:=false")
    with Context() as probe:
        assert probe.state() == "unconfigured"
        assert probe.transition(CONFIGURE)
        assert probe.state() == "inactive"
        shown = show_some(probe)
        assert not shown & {stamp(answer.header) for answer in probe.answers}, "an inactive node answered"
        assert probe.transition(ACTIVATE)
        probe.until(lambda: bool(probe.answers), lambda: probe.show(GREEN))
        assert probe.transition(DEACTIVATE)
        shown = show_some(probe)
        assert not shown & {stamp(answer.header) for answer in probe.answers}, "a deactivated node answered"
        assert probe.transition(ACTIVATE)
        probe.until(lambda: bool(probe.answers), lambda: probe.show(GREEN))
        assert probe.transition(DEACTIVATE)
        assert probe.transition(CLEANUP)
        assert probe.state() == "unconfigured"
        # rclpy raises out of its own service callback here, which ends a node that does not expect it.
        with pytest.raises(AssertionError, match="timeout"):
            probe.transition(ACTIVATE, timeout_s=1.0)
        assert probe.state() == "unconfigured"
    assert node.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_0(start_node: StartNode, tmp_path: Path, number: signal.Signals) -> None:
    node = start_node(fake_bundle(tmp_path))
    wait_for(node, "never the sole input to actuation")
    node.process.send_signal(number)
    assert node.process.wait(10) == 0, node.tail()
    assert "Traceback" not in node.tail()


def test_a_signal_ends_it_with_0_even_while_inference_hangs(messages: None, start_node: StartNode, tmp_path: Path) -> None:
    from probe import GREEN, Context

    node = start_node(fake_bundle(tmp_path, frozen_after=1), "hung_after_s:=0.0")
    wait_for(node, "ready in")
    with Context() as probe:
        probe.until(lambda: float((probe.diagnostics or [{}])[-1].get("inference_running_s", 0)) > 0, lambda: probe.show(GREEN))
    node.process.send_signal(signal.SIGINT)
    assert node.process.wait(10) == 0, node.tail()
    assert "inference did not stop within 2.0 s" in node.tail()


def test_a_hung_inference_ends_it_with_1_for_a_restart(messages: None, start_node: StartNode, tmp_path: Path) -> None:
    from probe import GREEN, Context

    node = start_node(fake_bundle(tmp_path, frozen_after=1), "hung_after_s:=0.2")
    wait_for(node, "ready in")
    with Context() as probe:
        probe.until(lambda: node.process.poll() is not None, lambda: probe.show(GREEN))
    assert node.process.returncode == 1
    assert "hung or ended inference" in node.tail()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([], "cannot configure: {bundle}: expected a bundle folder, found no manifest"),
        (["camera_topics:=[not a topic]"], "cannot configure"),
        (["tolerance_ms:=-5.0"], "tolerance_ms"),
        (["deadline_ms:=100"], "a float needs its point: 100.0"),
    ],
)
def test_what_it_cannot_use_ends_it_with_1_and_one_line(
    start_node: StartNode, tmp_path: Path, parameters: list[str], words: str
) -> None:
    node = start_node(tmp_path / "nowhere", *parameters)
    assert node.process.wait(20) == 1
    node.join()
    lines = node.tail().splitlines()
    assert len(lines) == 1, node.tail()
    assert words.format(bundle=tmp_path / "nowhere") in lines[0]


def test_a_topic_that_is_none_is_named(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node(fake_bundle(tmp_path), "camera_topics:=['no topic']")
    assert node.process.wait(20) == 1
    node.join()
    assert "parameter camera_topics: 'no topic' of CAM_FRONT is no topic name" in node.tail()
