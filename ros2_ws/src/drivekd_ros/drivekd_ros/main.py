"""The node as a program. Exit codes: 0 asked to stop (SIGINT, SIGTERM), 1 it could not start or can no longer answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions

from .node import DrivekdNode, Load, load_session

SPIN_TIMEOUT_S = 0.1  # how late a signal may be noticed


def main(args: Sequence[str] | None = None, *, load: Load = load_session) -> int:
    """Run the node until a signal comes; returns the exit code."""
    # Own signal handling: rclpy's would pull the context away from under the inference thread's publishers.
    rclpy.init(args=list(args) if args is not None else None, signal_handler_options=SignalHandlerOptions.NO)
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        signal.signal(number, _interrupt)
    node: DrivekdNode | None = None
    try:
        node = DrivekdNode(load=load)
        return _spin(node)
    except KeyboardInterrupt:
        return 0
    except ParameterException as error:
        rclpy.logging.get_logger("drivekd").error(f"{' '.join(str(error).split())} (a float needs its point: 100.0)")
        return 1
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.stop()
            node.destroy_node()
        rclpy.try_shutdown()


def _spin(node: DrivekdNode) -> int:
    """Start when asked to, then serve callbacks until the node can no longer answer."""
    if node.get_parameter("autostart").value and not node.start():
        if not node.failure:  # an error that nobody expected: rclpy swallows it
            node.get_logger().error("cannot start: a lifecycle transition raised; configure by hand to find which")
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not node.fatal:
        try:
            executor.spin_once(timeout_sec=SPIN_TIMEOUT_S)
        except rclpy_implementation.RCLError as error:  # rclpy raises this out of a service call for a wrong transition
            node.get_logger().error(f"refused: {' '.join(str(error).split())}")
    node.get_logger().fatal("no answers can come any more (hung or ended inference); leaving for a restart")
    return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
