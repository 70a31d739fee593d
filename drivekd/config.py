"""One typed YAML tree for a run. Unknown keys are refused; every field has a type, a default that works, a unit and a sentence.

    seed
    student      which checkpoint, which parts train
    teachers     one checkpoint per capability (any subset; none = supervised fine-tuning)
    data         training, unlabelled and validation records
    signals      what attention to distil, from which layers, how strongly
    projection   how the gradients of the capabilities are reconciled (AGP or sum)
    optimizer    AdamW and its schedule
    training     steps, batches, device, precision, checkpoints
    prompts      the questions that an exported bundle asks by default

Paths are relative to the YAML file that names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from drivekd.data.sample import CAPABILITIES, Capability
from drivekd.errors import ConfigError

Part: TypeAlias = Literal["vision_encoder", "projector", "language_model"]
Positive: TypeAlias = Annotated[int, Field(ge=1)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0)]
LayerList: TypeAlias = list[int]


class Section(BaseModel):
    """Base of every section: strict keys, frozen values."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StudentConfig(Section):
    checkpoint: Path = Field(description="Directory in the Hugging Face layout to start from.")
    train: list[Part] = Field(
        default=["language_model"],
        min_length=1,
        description="Parts whose weights move; the others are frozen (the paper's figure).",
    )


class TeachersConfig(Section):
    perception: Path | None = Field(default=None, description="Checkpoint of the perception teacher.")
    reasoning: Path | None = Field(default=None, description="Checkpoint of the reasoning teacher.")
    planning: Path | None = Field(default=None, description="Checkpoint of the planning teacher.")

    def paths(self) -> dict[Capability, Path]:
        """The capabilities that have a teacher, with its checkpoint."""
        found = {name: getattr(self, name) for name in CAPABILITIES}
        return {name: path for name, path in found.items() if path is not None}


class DataConfig(Section):
    train: list[Path] = Field(min_length=1, description="Labelled records in the Drive-KD format.")
    unlabelled: list[Path] = Field(default=[], description="Records without answers: signals on the prompt's rows, no CE.")
    validation: Path | None = Field(default=None, description="Records scored by CE every validate_every_steps.")
    image_root: Path | None = Field(default=None, description="Folder of relative image paths; default: the records' own folder.")
    capabilities: list[Capability] = Field(default=list(CAPABILITIES), min_length=1, description="Train on these alone.")


class SignalConfig(Section):
    weight: NonNegative = Field(default=1.0, description="Strength; its unit is set by signals.weighting.")
    student_layers: LayerList = Field(default=[], description="0-based, negative from the end; empty = the paper's choice.")
    teacher_layers: LayerList = Field(default=[], description="0-based, negative from the end; empty = the paper's choice.")


class SignalsConfig(Section):
    perception: SignalConfig = SignalConfig()
    reasoning: SignalConfig = SignalConfig()
    planning: SignalConfig = SignalConfig()
    grouping: Literal["window", "proportional"] = Field(
        default="window", description="How teacher layers are averaged per student layer; window = as released."
    )
    weighting: Literal["static", "relative"] = Field(
        default="static",
        description="static: weight multiplies the loss. relative: the signal's gradient gets weight times CE's gradient norm.",
    )
    mixing: Literal["routed", "released"] = Field(
        default="routed",
        description="routed: a sample learns from its capability's teacher. released: .8 there, .1 each elsewhere.",
    )
    rows: Literal["all", "question"] = Field(
        default="all", description="Attention rows compared on labelled samples; unlabelled ones always use the prompt's rows."
    )


class ProjectionConfig(Section):
    method: Literal["agp", "sum"] = Field(default="agp", description="Asymmetric gradient projection, or the plain sum.")
    anchor: Literal["shared", "own"] = Field(
        default="shared", description="shared: one CE gradient for all. own: each capability's own CE gradient."
    )
    anchor_multiplicity: Literal["per_capability", "once"] = Field(
        default="per_capability", description="How often the shared CE gradient counts; per_capability = as released."
    )
    stages: list[Literal[1, 2]] = Field(default=[1, 2], description="Which AGP stages run.")


class OptimizerConfig(Section):
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=5e-5, description="AdamW's peak rate.")
    weight_decay: NonNegative = Field(default=0.0, description="Decoupled weight decay.")
    schedule: Literal["constant", "cosine"] = Field(default="constant", description="Shape after warm-up; cosine ends at 0.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(default=0, description="Linear warm-up, optimizer steps.")
    clip_norm: NonNegative = Field(default=0.0, description="Clip the update's global gradient norm; 0 = off.")


class TrainingConfig(Section):
    steps: Positive = Field(description="Optimizer steps.")
    batch_size: Positive = Field(default=4, description="Labelled samples per optimizer step.")
    unlabelled_batch_size: Annotated[int, Field(ge=0)] = Field(default=0, description="Unlabelled samples per optimizer step.")
    micro_batch_size: Positive = Field(default=1, description="Samples in memory at once.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto = CUDA where there is one.")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: compute in bf16 under fp32 master weights.")
    threads: Annotated[int, Field(ge=0)] = Field(default=0, description="CPU threads; 0 = one per core. Part of bit-equality.")
    checkpoint_every_steps: Positive = Field(default=500, description="Steps between checkpoints.")
    keep_checkpoints: Positive = Field(default=2, description="Newest checkpoints kept on disk.")
    validate_every_steps: Annotated[int, Field(ge=0)] = Field(default=0, description="Steps between validations; 0 = at the end.")


class PromptsConfig(Section):
    perception: str = "What are the important objects in the current scene?"
    reasoning: str = "What object should the ego vehicle notice first? Why?"
    planning: str = "The ego vehicle drives at {ego_speed_mps} m/s. In this scenario, what should the ego vehicle do? Why?"
    variables: dict[str, int | float | str] = Field(default={"ego_speed_mps": 8}, description="Values used when none is given.")
    note: str = Field(default="", description="What whoever reads the answers must know; `drivekd run` prints it.")


class RunConfig(Section):
    """The whole tree."""

    seed: int = Field(default=0, ge=0, description="Seeds data order, projection order and initialisation.")
    student: StudentConfig
    teachers: TeachersConfig = TeachersConfig()
    data: DataConfig
    signals: SignalsConfig = SignalsConfig()
    projection: ProjectionConfig = ProjectionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    prompts: PromptsConfig = PromptsConfig()

    @model_validator(mode="after")
    def _unlabelled_needs_teachers(self) -> RunConfig:
        wanted = self.training.unlabelled_batch_size
        if wanted and not self.data.unlabelled:
            raise ValueError(f"training.unlabelled_batch_size is {wanted}, but data.unlabelled names no file")
        if wanted and not self.teachers.paths():
            raise ValueError("training.unlabelled_batch_size needs at least one teacher: unlabelled records have no CE")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML), check it. Raises ConfigError.

    Relative paths in the file are taken from the file's folder; those of overrides from the current folder.
    """
    tree = _read_yaml(path)
    _anchor_paths(tree, path.resolve().parent)
    for override in overrides:
        _apply_override(tree, override)
    _anchor_paths(tree, Path.cwd())  # what is still relative came from an override; config.yaml must be readable from anywhere
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error


def dump_config(config: RunConfig) -> str:
    """The resolved tree as YAML text; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: configuration cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {_keys_of(RunConfig)}, found {type(tree).__name__}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example --set training.steps=100")
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {name} is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML ({error})") from error


_PATH_KEYS = {
    "student": ("checkpoint",),
    "teachers": tuple(CAPABILITIES),
    "data": ("train", "unlabelled", "validation", "image_root"),
}


def _anchor_paths(tree: dict[str, Any], folder: Path) -> None:
    """Make the file's relative paths absolute in place; what has the wrong type is left for validation to name."""
    for section, keys in _PATH_KEYS.items():
        values = tree.get(section)
        if not isinstance(values, dict):
            continue
        for key in keys:
            value = values.get(key)
            if isinstance(value, str):
                values[key] = str(folder / value)
            elif isinstance(value, list):
                values[key] = [str(folder / item) if isinstance(item, str) else item for item in value]


def _explain(error: ValidationError, path: Path) -> str:
    """One line a fault: file, key, what was found, what would be right."""
    lines = []
    for fault in error.errors():
        names = [str(part) for part in fault["loc"]]
        key = ".".join(names) or "the whole configuration"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key {key}; known here: {_keys_of(_section_at(names[:-1]))}")
        elif fault["type"] == "missing":
            lines.append(f"{path}: {key} is missing; it is required")
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            found = "" if isinstance(fault["input"], dict) else f" = {fault['input']!r}"
            lines.append(f"{path}: {key}{found}: {reason}")
    return "\n".join(lines)


def _section_at(names: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = RunConfig
    for name in names:
        annotation = section.model_fields[name].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return section


def _keys_of(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)
