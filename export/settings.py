"""What an export shall be: each graph's precision, the dialects, and what to calibrate and judge on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from drivekd.config import Section, apply_override, explain
from drivekd.errors import ConfigError, UsageError
from drivekd.runtime.bundle.manifest import DIALECTS, PRECISIONS

from .quantize.convert import Activations, Block, GraphPlan

Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int4"]

# Four bits are for weights that are read once a token; a vision tower computes, and in int4 it would be slower and less exact.
VISION_PRECISIONS = {"int4": "int8"}


class ExportSettings(Section):
    """What `drivekd export --set KEY=VALUE` takes."""

    vision: Precision | None = Field(default=None, description="The vision graph's precision, when it is another one.")
    decoder: Precision | None = Field(default=None, description="That of decoder and embedding.")
    block: Block = Field(default=GraphPlan.block, description="Weights that share an int4 scale.")
    exclude: list[str] = Field(default=[], description='MatMuls that stay unquantized, as "layers.7.*" or "lm_head".')
    activations: Activations = Field(default=GraphPlan.activations, description="Between int8 and int4 MatMuls; fp16 for a GPU.")
    dialects: list[Literal["gqa", "concat"]] = Field(
        default=["gqa", "concat"],
        min_length=1,
        description="How the decoder keeps K/V: gqa for onnxruntime, concat for every engine.",
    )
    calibration: Path | None = Field(default=None, description="Records whose images and questions set int8's ranges.")
    calibration_samples: int = Field(default=8, ge=1, description="How many of them.")
    evaluation: Path | None = Field(default=None, description="Labelled records for the accuracy beside the checkpoint's.")
    schemas: Path | None = Field(default=None, description="schemas.json of structured answers; drivekd's own without it.")
    sensitivity: bool = Field(default=False, description="Say which layers lose most, and what to exclude.")


@dataclass(frozen=True)
class ExportPlan:
    """vision, decoder: what each graph becomes; the embedding's rows go with the decoder, whose lm_head multiplies with them."""

    vision: GraphPlan = field(default_factory=lambda: GraphPlan("fp32"))
    decoder: GraphPlan = field(default_factory=lambda: GraphPlan("fp32"))
    settings: ExportSettings = field(default_factory=ExportSettings)

    @property
    def dialects(self) -> tuple[str, ...]:
        """Best first."""
        return tuple(name for name in DIALECTS if name in self.settings.dialects)

    @property
    def is_exact(self) -> bool:
        """Whether every number stays fp32."""
        return {self.vision.precision, self.decoder.precision} == {"fp32"}

    @property
    def needs_calibration(self) -> bool:
        """Whether a graph becomes int8: its activations have ranges, which camera images set."""
        return "int8" in (self.vision.precision, self.decoder.precision)

    @property
    def label(self) -> str:
        """For people."""
        if self.vision.precision == self.decoder.precision:
            return self.decoder.precision
        return f"vision {self.vision.precision}, decoder {self.decoder.precision}"


def plan_from_options(precision: str = "fp32", overrides: Sequence[str] = ()) -> ExportPlan:
    """`--precision` and `--set key=value` as a plan. `precision` is both graphs'; int4's vision tower is int8.

    Raises UsageError: an unknown word, int8 without calibration.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision!r} is unknown; this version exports {', '.join(PRECISIONS)}")
    settings = _settings(overrides)
    vision, decoder = settings.vision or VISION_PRECISIONS.get(precision, precision), settings.decoder or precision
    exclude, activations = tuple(settings.exclude), settings.activations
    plan = ExportPlan(
        GraphPlan(vision, block=settings.block, exclude=exclude, activations=activations),
        GraphPlan(decoder, block=settings.block, exclude=exclude, activations=activations),
        settings,
    )
    _check(plan)
    return plan


def _settings(overrides: Sequence[str]) -> ExportSettings:
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    try:
        return ExportSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", ExportSettings)) from error


def _check(plan: ExportPlan) -> None:
    if plan.needs_calibration and plan.settings.calibration is None:
        raise UsageError(
            "int8 is calibrated on real camera images: give --set calibration=RECORDS.json, such as the training file"
            + ("; or --set vision=fp16" if plan.decoder.precision == "int4" else "")
        )
    if plan.settings.sensitivity and (plan.is_exact or plan.settings.calibration is None):
        raise UsageError("sensitivity needs int8 or int4, and --set calibration=RECORDS.json to run the graphs on")
    if plan.settings.exclude and plan.is_exact:
        raise UsageError("exclude leaves MatMuls unquantized, but nothing is quantized in fp32; give --precision")
