"""What `drivekd calibrate --set KEY=VALUE` takes: how questions are asked, as in eval, and what is wished of the confidences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from drivekd.config import apply_override, explain
from drivekd.errors import ConfigError
from drivekd.evaluate.settings import EvalSettings

from .report import Goal


class CalibrationSettings(EvalSettings):
    """How questions are asked, and the goal."""

    risk: Annotated[float, Field(ge=0, lt=1)] = Field(default=Goal.risk, description="Share of given answers that may be wrong.")
    bins: Annotated[int, Field(ge=2, le=100)] = Field(default=Goal.bins, description="Of the calibration error, equal-mass.")
    least: Annotated[int, Field(ge=10)] = Field(default=Goal.least, description="Answers that each half of a capability needs.")

    @property
    def goal(self) -> Goal:
        """What is wished of the confidences."""
        return Goal(self.risk, self.bins, self.least)


def calibration_settings(overrides: Sequence[str]) -> CalibrationSettings:
    """From `--set` overrides. Raises ConfigError naming the key."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override, "risk=0.05")
    try:
        return CalibrationSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", CalibrationSettings)) from error
