"""The node's parameters: one table of names, defaults, ranges and sentences, and the checked values as one frozen object.

No rclpy here; `parameters.py` declares the table on a node. ROS cannot say "empty list", so [""] stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from drivekd.errors import ConfigError

Value: TypeAlias = bool | float | str | list[str]

MAX_CAMERAS = 6


@dataclass(frozen=True)
class Spec:
    """One parameter. low, high: the range of a number, both included."""

    name: str
    default: Value
    description: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()


SPECS: tuple[Spec, ...] = (
    Spec("bundle", "", "Folder of the drivekd bundle. Required."),
    Spec("backend", "auto", "Inference engine: auto, ort-cpu, trt, ... as the bundle offers."),
    Spec("capabilities", [""], "Capabilities to answer for every frame; [''] = all of the bundle."),
    Spec("cameras", [""], "Camera names in the bundle's order, 1 to 6; [''] = the bundle's."),
    Spec("camera_topics", [""], "One topic per camera, same order; [''] = ~/input/NAME/image or ~/input/NAME/image/compressed."),
    Spec("anchor", "", "Camera that gives a frame set its stamp; '' = the first."),
    Spec("compressed", False, "true: topics carry sensor_msgs/CompressedImage; false: sensor_msgs/Image."),
    Spec("reliability", "best_effort", "Reliability of the camera subscriptions.", choices=("best_effort", "reliable")),
    Spec("ego_speed_mps", 0.0, "Forward speed when ~/input/twist gives none, m/s.", -30.0, 100.0),
    Spec("twist_tolerance_ms", 200.0, "How much older than the frame a measured speed may be, ms.", 0.0, 10_000.0),
    Spec("twist_required", False, "true: a frame without a measured speed is dropped (no_speed), not answered with the default."),
    Spec("deadline_ms", 0.0, "Time for one frame set from taking it to its answers, ms; 0 = none.", 0.0, 600_000.0),
    Spec("max_frame_age_ms", 500.0, "Frames older than this are dropped, ms; 0 = any age.", 0.0, 60_000.0),
    Spec("tolerance_ms", 50.0, "Largest stamp difference between the anchor and another camera, ms.", 0.0, 5_000.0),
    Spec("hung_after_s", 30.0, "An inference longer than this is an ERROR and ends the node, s; 0 = never.", 0.0, 3_600.0),
    Spec("autostart", True, "true: configure and activate on start; false: wait for a lifecycle manager."),
)


@dataclass(frozen=True)
class NodeSettings:
    """Checked parameter values; same names and units as SPECS. Empty `cameras` or `capabilities` mean the bundle's."""

    bundle: str
    backend: str
    capabilities: tuple[str, ...]
    cameras: tuple[str, ...]
    camera_topics: tuple[str, ...]
    anchor: str
    compressed: bool
    reliability: str
    ego_speed_mps: float
    twist_tolerance_ms: float
    twist_required: bool
    deadline_ms: float
    max_frame_age_ms: float
    tolerance_ms: float
    hung_after_s: float
    autostart: bool

    def topics(self, cameras: tuple[str, ...]) -> dict[str, str]:
        """Topic by camera. Raises ConfigError when the given topics do not pair with the cameras, or one names another camera."""
        if not self.camera_topics:
            ending = "image/compressed" if self.compressed else "image"
            return {camera: f"~/input/{camera}/{ending}" for camera in cameras}
        if len(self.camera_topics) != len(cameras):
            raise ConfigError(
                f"parameter camera_topics: {len(self.camera_topics)} topics for {len(cameras)} cameras ({', '.join(cameras)})"
            )
        paired = dict(zip(cameras, self.camera_topics, strict=True))
        for camera, topic in paired.items():
            if other := [name for name in cameras if name != camera and name in topic.split("/")]:
                raise ConfigError(
                    f"parameter camera_topics: '{topic}' stands where {camera} is in {', '.join(cameras)}, but names {other[0]}; "
                    "give the topics in the order of the cameras"
                )
        return paired


def settings_from_values(values: Mapping[str, Value]) -> NodeSettings:
    """Check parameter values. Raises ConfigError naming the parameter, its value and what would be right."""
    kept: dict[str, object] = {}
    for spec in SPECS:
        value = values.get(spec.name, spec.default)
        if isinstance(value, list):
            kept[spec.name] = _names(spec.name, value)
            continue
        if spec.choices and value not in spec.choices:
            raise ConfigError(f"parameter {spec.name}: '{value}' is none of {', '.join(spec.choices)}")
        if isinstance(spec.default, float) and not spec.low <= cast(float, value) <= spec.high:
            raise ConfigError(f"parameter {spec.name}: {value} is outside {spec.low} to {spec.high}")
        kept[spec.name] = value
    settings = NodeSettings(**kept)  # type: ignore[arg-type]  # the table above and the fields match, a test holds it
    if not settings.bundle:
        raise ConfigError("parameter bundle is empty; give the folder of a bundle, such as -p bundle:=/path/to/bundle")
    return settings


def resolved_cameras(settings: NodeSettings, bundle_cameras: tuple[str, ...]) -> tuple[str, ...]:
    """The cameras to subscribe, in the bundle's order. Raises ConfigError on unknown, no, or too many cameras or a wrong anchor.

    bundle_cameras: what the bundle was trained on; empty when it states none.
    """
    cameras = settings.cameras or bundle_cameras
    if not cameras:
        raise ConfigError(
            "parameter cameras is empty, and the bundle states none; give their names, such as cameras:=[CAM_FRONT]"
        )
    if bundle_cameras and (unknown := [name for name in cameras if name not in bundle_cameras]):
        raise ConfigError(f"parameter cameras: the bundle does not know '{unknown[0]}'; it has {', '.join(bundle_cameras)}")
    if not 1 <= len(cameras) <= MAX_CAMERAS:
        raise ConfigError(f"parameter cameras: expected 1 to {MAX_CAMERAS} cameras, found {len(cameras)}")
    if settings.anchor and settings.anchor not in cameras:
        raise ConfigError(f"parameter anchor: '{settings.anchor}' is none of {', '.join(cameras)}")
    return cameras


def _names(parameter: str, value: list[str]) -> tuple[str, ...]:
    names = tuple(name for name in value if name)
    if len(set(names)) != len(names):
        raise ConfigError(f"parameter {parameter}: a name stands twice in {', '.join(names)}")
    return names
