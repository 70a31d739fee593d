"""Declares the table of `settings.py` on a node and reads it back."""

from __future__ import annotations

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.node import Node

from .settings import SPECS, NodeSettings, Spec, settings_from_values


def declare_parameters(node: Node) -> None:
    """Declare every parameter with its description and range; rcl refuses values outside."""
    for spec in SPECS:
        node.declare_parameter(spec.name, spec.default, _descriptor(spec))


def read_settings(node: Node) -> NodeSettings:
    """The values now. Raises ConfigError."""
    return settings_from_values({spec.name: node.get_parameter(spec.name).value for spec in SPECS})


def _descriptor(spec: Spec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=f"{spec.description} Read when the node is configured.")
    if spec.choices:
        descriptor.additional_constraints = "one of: " + ", ".join(spec.choices)
    if isinstance(spec.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=spec.low, to_value=spec.high, step=0.0)]
    return descriptor
