"""The built-in driving world: small, deterministic, exact.

    build_world: WorldSettings -> pictures, records, manifest
    make_scene: seed -> Scene        render_frame: Scene -> picture, labels        plan, records_of: Scene -> answers

Imports numpy and Pillow only. See `oracle` for the rules of the road and `questions` for what is asked.
"""

from .build import FORMAT_VERSION, WorldSummary, build_world
from .coordinates import COORDINATE_WORDS, bin_center, format_coordinate, format_tag
from .oracle import Plan, plan
from .picture.labels import Label
from .picture.painting import render_frame
from .questions import PROMPTS, Record, records_of, without_answer
from .scene.scene import Actor, Scene
from .settings import SPLITS, Split, WorldSettings
from .staging import make_scene

__all__ = [
    "COORDINATE_WORDS",
    "FORMAT_VERSION",
    "PROMPTS",
    "SPLITS",
    "Actor",
    "Label",
    "Plan",
    "Record",
    "Scene",
    "Split",
    "WorldSettings",
    "WorldSummary",
    "bin_center",
    "build_world",
    "format_coordinate",
    "format_tag",
    "make_scene",
    "plan",
    "records_of",
    "render_frame",
    "without_answer",
]
