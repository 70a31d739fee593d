"""What `drivekd eval --set KEY=VALUE` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from drivekd.config import Positive, Section, apply_override, explain
from drivekd.errors import ConfigError, UsageError
from drivekd.sample import Capability

from .answering import AnswererSettings, Pictures
from .answering.answerer import BATCH_SIZE
from .corruptions import DEFAULT_SEVERITY, SETTINGS
from .predictions import Shard

Budget: TypeAlias = Positive | dict[Capability, Positive]
ALL_SETTINGS = "all"


class EvalSettings(Section):
    """How questions are asked."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Of a checkpoint; auto = CUDA if any.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="In which a checkpoint computes.")
    batch_size: Positive = Field(default=BATCH_SIZE, description="Questions that a checkpoint answers at once.")
    backend: str = Field(default="auto", description="Of a bundle: ort-cpu, ort-cuda or trt.")
    threads: Positive | None = Field(default=None, description="Of a bundle's operators; all cores without it.")
    max_new_tokens: Budget | None = Field(
        default=None,
        description="Where answers are cut, one number or {planning: 96, ...}; default: what the model was made for.",
    )
    shard: str = Field(default="1/1", description="N/COUNT: this process asks a part, by frames.")
    limit: Positive | None = Field(default=None, description="The first so many questions of each capability.")
    severity: Annotated[int, Field(ge=1, le=5)] | None = Field(
        default=None, description="Of picture settings; default: DriveBench's."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Of corruptions and of the bootstrap.")

    def answerer(self, *, structured: bool) -> AnswererSettings:
        """The part that concerns who answers."""
        budget: int | Mapping[Any, int] | None = self.max_new_tokens
        return AnswererSettings(
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            max_new_tokens=budget,
            backend=self.backend,
            threads=self.threads,
            structured=structured,
        )

    def pictures(self, names: str) -> list[Pictures]:
        """Of "clean,NoImage,Fog" or "all". Raises UsageError naming the known ones."""
        wanted = SETTINGS if names == ALL_SETTINGS else tuple(name.strip() for name in names.split(","))
        if unknown := [name for name in wanted if name not in SETTINGS]:
            raise UsageError(f"--settings: {unknown[0]!r} is unknown; expected all, or some of {', '.join(SETTINGS)}")
        if len(set(wanted)) < len(wanted):
            raise UsageError(f"--settings {names}: a setting stands twice")
        return [Pictures(name, self._severity(name), self.seed) for name in wanted]

    def _severity(self, name: str) -> int | None:
        return (self.severity or DEFAULT_SEVERITY[name]) if name in DEFAULT_SEVERITY else None

    def part(self) -> Shard:
        """The shard of this process. Raises UsageError."""
        return Shard.parse(self.shard)


def eval_settings(overrides: Sequence[str]) -> EvalSettings:
    """From `--set` overrides. Raises ConfigError naming the key."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override, "batch_size=16")
    try:
        return EvalSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", EvalSettings)) from error
