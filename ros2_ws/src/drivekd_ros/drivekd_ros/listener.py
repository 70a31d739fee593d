"""Listens to a node's text topics and typed answers; stdout: one JSON line a typed answer.

Stops with 0 after --count typed answers, at least one a capability, and the text of each valid one; with 1 at
the timeout, saying on stderr what was missing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import rclpy
from drivekd_msgs.msg import Answer
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from .input.inputs import stamp_ns

CAPABILITIES = ("perception", "reasoning", "planning")


class Listener(Node):
    """Writes the typed answers of the node named `node` to stdout and counts what was heard, by capability."""

    def __init__(self, node: str, capabilities: Sequence[str], count: int) -> None:
        super().__init__("drivekd_listener")
        self._capabilities = tuple(capabilities)
        self._count = count
        self._texts: Counter[str] = Counter()
        self._typed: Counter[str] = Counter()
        self._valid: Counter[str] = Counter()
        for name in capabilities:
            self.create_subscription(String, f"{node}/{name}", partial(self._on_text, name), 10)
        self.create_subscription(Answer, f"{node}/answer", self._on_answer, 10)

    def missing(self) -> list[str]:
        """What has not come yet; empty when done. A capability whose answers are all invalid has no text to wait for."""
        rest = self._count - self._typed.total()
        found = [f"{rest} of {self._count} typed answers"] if rest > 0 else []
        found += [f"a typed answer for {name}" for name in self._capabilities if not self._typed[name]]
        return found + [f"a text on {name}" for name in self._capabilities if self._valid[name] and not self._texts[name]]

    def _on_text(self, capability: str, _message: String) -> None:
        self._texts[capability] += 1

    def _on_answer(self, message: Answer) -> None:
        self._typed[message.capability] += 1
        self._valid[message.capability] += message.valid
        sys.stdout.write(json.dumps(answer_json(message), ensure_ascii=sys.stdout.encoding.lower() != "utf-8") + "\n")
        sys.stdout.flush()


def answer_json(message: Answer) -> dict[str, object]:
    """The typed message as plain values; units stand in the keys."""
    return {
        "stamp_ns": stamp_ns(message.header.stamp),
        "frame_id": message.header.frame_id,
        "capability": message.capability,
        "text": message.text,
        "fields": {field.name: field.value for field in message.fields},
        "valid": message.valid,
        "finish_reason": message.finish_reason,
        "tokens": message.tokens,
        "mean_logprob": message.mean_logprob,
        "camera_ages_ms": dict(zip(message.cameras, message.camera_ages_ms, strict=True)),
        "ego_speed_mps": message.ego_speed_mps,
        "ego_speed_measured": message.ego_speed_measured,
        "timings_ms": {stage.stage: stage.latency_ms for stage in message.stage_latencies},
        "bundle": message.bundle_digest,
        "backend": message.backend,
        "advisory": message.advisory,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, listen, return the exit code."""
    parser = argparse.ArgumentParser(prog="listener", description="Print typed answers as JSON lines.")
    parser.add_argument("--node", default="/drivekd", help="the node's full name")
    parser.add_argument("--capability", nargs="+", default=list(CAPABILITIES), help="text topics that must speak")
    parser.add_argument("--count", type=int, default=3, help="typed answers to wait for")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds")
    options = parser.parse_args(arguments)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        missing = _listen(Listener(options.node, options.capability, options.count), options.timeout)
    finally:
        rclpy.try_shutdown()
    if missing:
        sys.stderr.write(f"listener: after {options.timeout:g} s still missing: {', '.join(missing)}\n")
    return 1 if missing else 0


def _listen(listener: Listener, timeout_s: float) -> list[str]:
    executor = SingleThreadedExecutor()
    executor.add_node(listener)
    due_s = time.monotonic() + timeout_s
    while listener.missing() and time.monotonic() < due_s:
        executor.spin_once(timeout_sec=0.1)
    return listener.missing()


if __name__ == "__main__":
    sys.exit(main())
