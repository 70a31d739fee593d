"""What an export shall be: each graph's precision, the dialects, and what to calibrate and judge on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError

from drivekd.config import Section, apply_override, explain
from drivekd.errors import ConfigError, UsageError
from drivekd.quantization.form import WeightForm
from drivekd.quantization.linears import is_vision, matmul_name
from drivekd.runtime.bundle.manifest import DIALECTS, PRECISIONS

from .quantize.convert import Activations, Block, GraphPlan
from .quantize.frames import MOST_FRAMES

Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int4"]

# Four bits are for weights that are read once a token; a vision tower computes, and in int4 it would be slower and less exact.
VISION_PRECISIONS = {"int4": "int8"}
# Rows are gathered, not read whole: eight bits cost no time, and four would cost words.
EMBEDDING_PRECISIONS = {"int4": "int8"}
VISION_INT8 = ("projector.*",)  # in a vision graph of int4: what every image's features pass through last


def _as_list(value: object) -> object:
    """One pattern need not be in brackets."""
    return [value] if isinstance(value, str) else value


Patterns: TypeAlias = Annotated[list[str], BeforeValidator(_as_list)]


class ExportSettings(Section):
    """What `drivekd export --set KEY=VALUE` takes."""

    vision: Precision | None = Field(default=None, description="The vision graph's precision, when it is another one.")
    decoder: Precision | None = Field(default=None, description="That of the decoder.")
    embedding: Precision | None = Field(default=None, description="That of the embedding's rows; int8 where the decoder is int4.")
    block: Block = Field(default=GraphPlan.block, description="Weights that share a scale.")
    exclude: Patterns = Field(default=[], description='MatMuls that stay unquantized, as "layers.7.*" or "lm_head".')
    int8: Patterns = Field(default=[], description="MatMuls that have 8 bits in a graph of int4.")
    bits: float | None = Field(
        default=None, gt=0, le=8.5, allow_inf_nan=False, description="Of a decoder's weight, mean; int8 goes where it saves most."
    )
    budget_mb: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Of the bundle; int8 goes where it saves most."
    )
    activations: Activations = Field(default=GraphPlan.activations, description="Between int8 and int4 MatMuls; fp16 for a GPU.")
    int8_inputs: bool | None = Field(
        default=None,
        description="Round the inputs of int8 MatMuls, too; default: in vision, with calibration, without rounded_checkpoint.",
    )
    dialects: list[Literal["gqa", "concat"]] = Field(
        default=["gqa", "concat"],
        min_length=1,
        description="How the decoder keeps K/V: gqa for onnxruntime, concat for every engine.",
    )
    calibration: Path | None = Field(default=None, description="Records on whose images and texts weights are rounded.")
    calibration_samples: int = Field(default=MOST_FRAMES, ge=1, description="How many of their frames, at most.")
    rounded_checkpoint: Path | None = Field(
        default=None,
        description="Folder for the rounded model as a checkpoint, which student.quantization starts from.",
    )
    evaluation: Path | None = Field(default=None, description="Labelled records for the accuracy beside the checkpoint's.")
    schemas: Path | None = Field(default=None, description="schemas.json of structured answers; drivekd's own without it.")
    sensitivity: bool = Field(default=False, description="Say which layers lose most, and what to exclude.")

    @property
    def mixes(self) -> bool:
        """Whether 8 bits are to be spent where they save most."""
        return self.bits is not None or self.budget_mb is not None


@dataclass(frozen=True)
class ExportPlan:
    """vision, decoder: what each graph becomes. embedding: its rows' precision."""

    vision: GraphPlan = field(default_factory=lambda: GraphPlan("fp32"))
    decoder: GraphPlan = field(default_factory=lambda: GraphPlan("fp32"))
    embedding: str = "fp32"
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
    def rounds_weights(self) -> bool:
        """Whether weights become int8 or int4."""
        return bool({self.vision.precision, self.decoder.precision} & {"int8", "int4"})

    def form_of(self, layer: str, inputs: int) -> WeightForm | None:
        """Of the weight of a linear layer with so many inputs; None: it stays float, or its inputs are rounded, too."""
        return (self.vision if is_vision(layer) else self.decoder).form_of(matmul_name(layer), inputs)

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
    plan = ExportPlan(
        _graph_plan(
            vision, settings, VISION_INT8, int8_inputs=settings.calibration is not None and settings.rounded_checkpoint is None
        ),
        _graph_plan(decoder, settings, settings.int8, int8_inputs=False),
        settings.embedding or EMBEDDING_PRECISIONS.get(decoder, decoder),
        settings,
    )
    _check(plan)
    return plan


def _graph_plan(precision: str, settings: ExportSettings, int8: Sequence[str], *, int8_inputs: bool) -> GraphPlan:
    """int8_inputs: unless the settings say."""
    wanted = int8_inputs if settings.int8_inputs is None else settings.int8_inputs
    return GraphPlan(
        precision,
        block=settings.block,
        exclude=tuple(settings.exclude),
        int8=tuple(int8) if precision == "int4" else (),
        activations=settings.activations,
        int8_inputs=wanted and precision == "int8",
    )


def _settings(overrides: Sequence[str]) -> ExportSettings:
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override, "calibration=data/train.json")
    try:
        return ExportSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", ExportSettings)) from error


def _check(plan: ExportPlan) -> None:
    settings = plan.settings
    if settings.int8_inputs and "int8" not in (plan.vision.precision, plan.decoder.precision):
        raise UsageError("int8_inputs are of int8 graphs; give --precision int8")
    if settings.int8_inputs and settings.calibration is None:
        raise UsageError("int8_inputs are scaled by what camera images reach: give --set calibration=RECORDS.json")
    if settings.bits is not None and settings.bits < (least := WeightForm(4, settings.block).bits_per_weight(settings.block)):
        raise UsageError(
            f"bits = {settings.bits:g}: int4 with a scale for each block of {settings.block} has {least:g} bits a weight"
        )
    if settings.rounded_checkpoint is not None and (not plan.rounds_weights or plan.vision.int8_inputs):
        raise UsageError("rounded_checkpoint holds weights of int8 or int4, and no rounded inputs: give --precision int4")
    if settings.sensitivity and (not plan.rounds_weights or settings.calibration is None):
        raise UsageError("sensitivity needs int8 or int4, and --set calibration=RECORDS.json to run the graphs on")
    if settings.exclude and plan.is_exact:
        raise UsageError("exclude leaves MatMuls unquantized, but nothing is quantized in fp32; give --precision")
    mixing = [key for key in ("int8", "bits", "budget_mb") if getattr(settings, key) not in (None, [])]
    if mixing and plan.decoder.precision != "int4":
        raise UsageError(f"{mixing[0]} is about MatMuls of 8 bits in a decoder of int4; this one is {plan.decoder.precision}")
    if len(mixing) > 1:
        raise UsageError(f"{' and '.join(mixing)} both decide what has 8 bits; give one")
    if mixing and mixing[0] != "int8" and settings.calibration is None:
        raise UsageError(f"{mixing[0]}: what 8 bits save is found on records: give --set calibration=RECORDS.json")
