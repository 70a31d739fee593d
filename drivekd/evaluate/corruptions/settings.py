"""Names, groups and severities, spelt as DriveBench's files and folders spell them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CLEAN, NO_IMAGE = "clean", "NoImage"

SEVERITIES = range(1, 6)

# The severity that the published robust pictures were made with.
DEFAULT_SEVERITY: Mapping[str, int] = MappingProxyType(
    {
        "BitError": 2,
        "CameraCrash": 4,
        "Fog": 5,
        "H256ABRCompression": 4,
        "LowLight": 4,
        "Rain": 5,
        "Snow": 4,
        "Brightness": 4,
        "ColorQuant": 4,
        "FrameLost": 4,
        "LensObstacleCorruption": 5,
        "MotionBlur": 4,
        "Saturate": 5,
        "ZoomBlur": 4,
        "WaterSplashCorruption": 4,
    }
)

SETTINGS: tuple[str, ...] = (CLEAN, NO_IMAGE, *DEFAULT_SEVERITY)

# The five groups of DriveBench's report.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "weather": ("Brightness", "LowLight", "Fog", "Rain", "Snow"),
        "external": ("WaterSplashCorruption", "LensObstacleCorruption"),
        "sensor": ("CameraCrash", "FrameLost", "Saturate"),
        "motion": ("MotionBlur", "ZoomBlur"),
        "transmission": ("BitError", "ColorQuant", "H256ABRCompression"),
    }
)
