"""One typed YAML tree for a run. Unknown keys are refused; every field has a type, a default that works, a unit and a sentence.

    seed
    student      which checkpoint, which parts train, in how many bits they compute
    teachers     one checkpoint per capability (any subset; none = supervised fine-tuning)
    data         training, unlabelled and validation records
    signals      what attention to distil, from which layers, how strongly
    projection   how the gradients of the capabilities are reconciled (AGP or sum)
    cache        what teachers and frozen vision towers computed, kept on disk
    optimizer    AdamW and its schedule
    training     steps, batches, packing, device, precision, checkpoints
    prompts      the questions that an exported bundle asks by default, and how long answers may be

Paths are relative to the YAML file that names them. A file may begin with `base: OTHER.yaml`: it then holds what differs from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from drivekd.errors import ConfigError
from drivekd.sample import CAPABILITIES, Capability
from drivekd.tiling import Tiling

Part: TypeAlias = Literal["vision_encoder", "projector", "language_model"]
Positive: TypeAlias = Annotated[int, Field(ge=1)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0)]
LayerList: TypeAlias = list[int]
CameraName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]  # as tags have it, <c1,CAM_FRONT,x,y>


class Section(BaseModel):
    """Base of every section: strict keys, frozen values."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraConfig(Section):
    rank: Positive = Field(default=16, description="Width of the low-rank update.")
    alpha: Annotated[float, Field(gt=0)] = Field(default=32.0, description="The update is scaled by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="On the adapters' input.")
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Linear layers of the language model that get an adapter.",
    )


class QuantizationConfig(Section):
    precision: Literal["int4", "int8"] = Field(
        default="int4", description="Of the decoder's weights; vision tower, projector and embedding have 8 bits."
    )
    block: Literal[32, 64, 128] = Field(default=32, description="Weights that share a scale.")
    exclude: list[str] = Field(default=[], description='MatMuls that stay float, as "layers.7.*"; as in `drivekd export`.')
    int8: list[str] = Field(default=[], description="MatMuls that have 8 bits in a decoder of int4.")
    last_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Quantize what trains in the last steps alone; 0 = from the start. What is frozen always is."
    )


class StudentConfig(Section):
    checkpoint: Path = Field(description="Directory in the Hugging Face layout to start from.")
    lora: LoraConfig | None = Field(
        default=None, description="Train adapters (peft) in the language model instead of its weights."
    )
    quantization: QuantizationConfig | None = Field(
        default=None, description="Compute with the weights that an int4 or int8 bundle will have."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute layers in backward: less memory, about a third slower."
    )
    train: list[Part] = Field(
        default=["language_model"],
        min_length=1,
        description="Parts whose weights move; the others are frozen (the paper's figure).",
    )

    @model_validator(mode="after")
    def _adapters_need_their_part(self) -> StudentConfig:
        if self.lora is not None and "language_model" not in self.train:
            raise ValueError(f"lora adapts the language model, but student.train = {self.train} leaves it out")
        return self

    @model_validator(mode="after")
    def _dropout_cannot_be_rounded(self) -> StudentConfig:
        if self.quantization is not None and self.lora is not None and self.lora.dropout > 0:
            raise ValueError(
                f"student.lora.dropout = {self.lora.dropout} with student.quantization: what is rounded is the sum of base and "
                "adapter, and no sum holds an adapter with dropout; use student.lora.dropout = 0"
            )
        return self


class TeachersConfig(Section):
    perception: Path | None = Field(default=None, description="Checkpoint of the perception teacher.")
    reasoning: Path | None = Field(default=None, description="Checkpoint of the reasoning teacher.")
    planning: Path | None = Field(default=None, description="Checkpoint of the planning teacher.")
    device: str = Field(default="student", pattern=r"^(student|cpu|cuda(:\d+)?)$", description="student = the student's device.")
    precision: Literal["training", "fp32", "bf16"] = Field(
        default="training", description="The teachers' weights; training = training.precision."
    )

    def paths(self) -> dict[Capability, Path]:
        """The capabilities that have a teacher, with its checkpoint."""
        found = {name: getattr(self, name) for name in CAPABILITIES}
        return {name: path for name, path in found.items() if path is not None}


class DataConfig(Section):
    train: list[Path] = Field(min_length=1, description="Labelled records, of any format in docs/data.md.")
    unlabelled: list[Path] = Field(default=[], description="Records without answers: signals on the prompt's rows, no CE.")
    validation: Path | None = Field(default=None, description="Records scored by CE every validate_every_steps.")
    camera_size_px: tuple[int, int] | None = Field(
        default=None, description="Width, height that Qwen2.5-VL sees each camera at, multiples of 28; default: the checkpoint's."
    )
    tiles: str | None = Field(
        default=None,
        description="InternVL's tiles a camera, columns x rows: 1x1, 2x1, 2x1+thumbnail; default: the checkpoint's, else 1x1.",
    )
    cameras: list[CameraName] = Field(
        default=[],
        description="Names in the order in which a prompt has their pictures; default: the records'. Records that name none have "
        "these, place by place.",
    )
    image_root: Path | None = Field(default=None, description="Folder of relative image paths; default: the records' own folder.")
    capabilities: list[Capability] = Field(default=list(CAPABILITIES), min_length=1, description="Train on these alone.")
    question_type: Capability | None = Field(default=None, description="Of records that name none; default: they are refused.")
    skip_faulty: bool = Field(
        default=False, description="Leave out records that cannot be read, counted; else the first stops the run."
    )
    grounding_tokens: list[str] = Field(
        default=[], description="Special tokens of the tokenizer that texts may hold, such as <box>: they become ordinary ones."
    )
    structured: Literal["none", "also", "only"] = Field(
        default="none",
        description="also: a labelled record is learnt a second time as JSON, asked with prompts.structured_instruction; "
        "only: as JSON alone.",
    )

    @field_validator("tiles")
    @classmethod
    def _tiles_are_a_grid(cls, tiles: str | None) -> str | None:
        return tiles if tiles is None else str(Tiling.parse(tiles))

    @model_validator(mode="after")
    def _cameras_are_told_apart(self) -> DataConfig:
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"data.cameras: a camera stands twice in {', '.join(self.cameras)}")
        return self


class SignalConfig(Section):
    weight: NonNegative = Field(default=1.0, description="Strength; its unit is set by signals.weighting.")
    student_layers: LayerList = Field(default=[], description="0-based, negative from the end; empty = the paper's choice.")
    teacher_layers: LayerList = Field(default=[], description="0-based, negative from the end; empty = the paper's choice.")
    loss: Literal["mse", "cosine", "hidden", "kl"] = Field(
        default="mse",
        description="mse, cosine: between attention maps. hidden: between similarities of hidden states. kl: between next words.",
    )
    form: Literal["text_to_vision", "full_map"] | None = Field(
        default=None, description="Which part of a map; default: full_map for reasoning, text_to_vision for the others."
    )


class DynamicWeightsConfig(Section):
    alpha: NonNegative = Field(default=0.0, description="GradNorm's exponent on relative training speed; 0 = as released.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=3e-4, description="AdamW's rate for the weights.")
    min_ce_weight: NonNegative = Field(default=0.6, description="Cross-entropy's weight never falls below.")


class SignalsConfig(Section):
    perception: SignalConfig = SignalConfig()
    reasoning: SignalConfig = SignalConfig()
    planning: SignalConfig = SignalConfig()
    grouping: Literal["window", "proportional"] = Field(
        default="window", description="How teacher layers are averaged per student layer; window = as released."
    )
    layers: Path | None = Field(
        default=None, description="JSON that `drivekd analyze` wrote; its layers hold where a capability names none itself."
    )
    ce_weight: Annotated[float, Field(gt=0)] = Field(default=1.0, description="w_ce: cross-entropy's weight.")
    weighting: Literal["static", "relative", "dynamic"] = Field(
        default="static",
        description="static: weight multiplies the loss. relative: the signal's gradient gets weight times CE's gradient norm. "
        "dynamic: static weights moved by GradNorm, as released.",
    )
    dynamic: DynamicWeightsConfig = DynamicWeightsConfig()
    mixing: Literal["routed", "released", "sampled"] = Field(
        default="routed",
        description="routed: a sample learns from its capability's teacher. released: .8 there, .1 each elsewhere. "
        "sampled: from one teacher, drawn with those probabilities.",
    )
    rows: Literal["all", "question", "answer"] = Field(
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
    unit: Literal["step", "micro_batch"] = Field(
        default="step", description="Project the optimizer step's gradients once, or each micro-batch's (as released)."
    )


class CacheConfig(Section):
    directory: Path | None = Field(
        default=None, description="Where computed signals and image features are kept; none = nowhere."
    )
    signals: bool = Field(default=True, description="Keep the targets of text-to-vision signals (perception, planning).")
    vision: bool = Field(default=True, description="Keep the image features of frozen vision towers.")
    precision: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="fp32 is exact; fp16 halves the size.")
    memory_mb: Annotated[int, Field(ge=0)] = Field(
        default=2048, description="Image features of each frozen tower kept in memory; the current micro-batch's always are."
    )
    fill_first: bool = Field(default=False, description="Fill the cache for every sample before the first step.")


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
    micro_batch_size: Positive = Field(default=1, description="Samples (packs, with packing) in memory at once.")
    packing: Literal["none", "frame", "capability"] = Field(
        default="none",
        description="frame: questions of one frame share its images; batch sizes then count packs of questions. "
        "capability: those of one capability do; more passes over the images, but with routed mixing two backward passes each.",
    )
    max_pack_tokens: Positive = Field(
        default=4096, description="Longest pack; a frame with more questions becomes several packs."
    )
    offload_gradients: bool = Field(default=False, description="Keep the gradients of the objectives in host memory.")
    early_stop_patience: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Stop after so many validations without a better loss; final/ is then the best. 0 = never."
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto = CUDA where there is one.")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: compute in bf16 under fp32 master weights.")
    threads: Annotated[int, Field(ge=0)] = Field(default=0, description="CPU threads; 0 = one per core. Part of bit-equality.")
    checkpoint_every_steps: Positive = Field(default=500, description="Steps between checkpoints.")
    keep_checkpoints: Positive = Field(default=2, description="Newest checkpoints kept on disk.")
    validate_on: Literal["loss", "accuracy"] = Field(
        default="loss", description="What is better: a lower cross-entropy, or more validation questions answered rightly."
    )
    validation_samples: Positive = Field(default=300, description="With validate_on: accuracy, questions asked at most.")
    validate_every_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps between validations, the last step included; best/ keeps the best. 0 = at the end alone."
    )


class PromptsConfig(Section):
    perception: str = "What are the important objects in the current scene?"
    reasoning: str = "What object should the ego vehicle notice first? Why?"
    planning: str = "The ego vehicle drives at {ego_speed_mps} m/s. In this scenario, what should the ego vehicle do? Why?"
    variables: dict[str, int | float | str] = Field(default={"ego_speed_mps": 8}, description="Values used when none is given.")
    structured_instruction: str = Field(
        default="\nAnswer as JSON.",
        min_length=1,
        description="Stands behind a question whose answer shall be JSON, in training (data.structured) and in the bundle.",
    )
    note: str = Field(default="", description="What whoever reads the answers must know; `drivekd run` prints it.")
    max_new_tokens: dict[Capability, Positive] = Field(
        default={},
        description="Tokens of an answer, by capability, or one number for all; default: the records' longest and a quarter.",
    )

    @field_validator("max_new_tokens", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return dict.fromkeys(CAPABILITIES, value) if type(value) is int else value


class RunConfig(Section):
    """The whole tree."""

    seed: int = Field(default=0, ge=0, description="Seeds data order, projection order and initialisation.")
    student: StudentConfig
    teachers: TeachersConfig = TeachersConfig()
    data: DataConfig
    signals: SignalsConfig = SignalsConfig()
    projection: ProjectionConfig = ProjectionConfig()
    cache: CacheConfig = CacheConfig()
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

    @model_validator(mode="after")
    def _early_stop_needs_validation(self) -> RunConfig:
        patience = self.training.early_stop_patience
        if patience and not (self.data.validation and self.training.validate_every_steps):
            raise ValueError(
                f"training.early_stop_patience is {patience}; it needs data.validation and training.validate_every_steps > 0"
            )
        return self

    @model_validator(mode="after")
    def _accuracy_needs_validation(self) -> RunConfig:
        if self.training.validate_on == "accuracy" and not self.data.validation:
            raise ValueError("training.validate_on is accuracy, but data.validation names no file to ask questions from")
        return self

    @model_validator(mode="after")
    def _last_steps_are_reached(self) -> RunConfig:
        last = self.student.quantization.last_steps if self.student.quantization is not None else 0
        if last > self.training.steps:
            raise ValueError(f"student.quantization.last_steps is {last}, but training.steps is {self.training.steps}")
        if last and self.training.early_stop_patience:
            raise ValueError(
                f"student.quantization.last_steps is {last} with training.early_stop_patience: a run that stops early may never "
                "come to its last steps; use last_steps: 0, or no early stop"
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file over its `base`, apply `key.sub=value` overrides (values are YAML), check it. Raises ConfigError.

    Relative paths in a file are taken from that file's folder; those of overrides from the current folder.
    """
    tree = _read_with_base(path, ())
    for override in overrides:
        apply_override(tree, override)
    _anchor_paths(tree, Path.cwd())  # what is still relative came from an override; config.yaml must be readable from anywhere
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, path, RunConfig)) from error


def dump_config(config: RunConfig) -> str:
    """The resolved tree as YAML text; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_with_base(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The file's tree, over that of the file which its key `base` names; paths are absolute. children: who asked for it."""
    place = path.resolve()
    if place in children:
        raise ConfigError(f"{children[-1]}: base = {str(path)!r} leads back to {place}, so that neither can be read")
    tree = _read_yaml(path)
    base = tree.pop("base", None)
    _anchor_paths(tree, place.parent)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base = {base!r}: expected the path of another YAML file, as in base: ../internvl3-1b.yaml")
    if not (place.parent / base).is_file():
        raise ConfigError(f"{path}: base = {base!r}: there is no file {(place.parent / base).resolve()}")
    return _merged(_read_with_base(place.parent / base, (*children, place)), tree)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; values and lists of `over` replace those of `base`."""
    tree = dict(base)
    for key, value in over.items():
        before = tree.get(key)
        tree[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML forbids a key twice in one mapping; PyYAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and key.value in lines:
                raise yaml.YAMLError(f"key {key.value!r} in line {line} is there already in line {lines[key.value]}; remove one")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{path}: configuration cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {_keys_of(RunConfig)}, found {type(tree).__name__}")
    return tree


def apply_override(tree: dict[str, Any], override: str, example: str = "training.steps=100") -> None:
    """Put one `key.sub=value` (the value is YAML) into a tree. example: for errors. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example --set {example}")
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
    "signals": ("layers",),
    "cache": ("directory",),
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


def explain(error: ValidationError, source: object, root: type[BaseModel]) -> str:
    """One line a fault of reading a `root`: source, key, what was found, what would be right."""
    lines = []
    for fault in error.errors():
        names = [str(part) for part in fault["loc"]]
        key = ".".join(names) or "the whole configuration"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{source}: unknown key {key}; known here: {_keys_of(_section_at(names[:-1], root))}")
        elif fault["type"] == "missing":
            lines.append(f"{source}: {key} is missing; it is required")
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            found = "" if isinstance(fault["input"], dict) else f" = {fault['input']!r}"
            lines.append(f"{source}: {key}{found}: {reason}")
    return "\n".join(lines)


def _section_at(names: Sequence[str], root: type[BaseModel]) -> type[BaseModel]:
    section = root
    for name in names:
        annotation = section.model_fields[name].annotation
        (section,) = (kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None))  # X or X | None
        assert issubclass(section, BaseModel)
    return section


def _keys_of(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)
