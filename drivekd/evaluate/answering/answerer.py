"""What can answer an evaluation's questions, and how it shall."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from drivekd.answered import Given
from drivekd.sample import Sample

from .budgets import Budgets
from .pictures import CLEAN, Pictures

BATCH_SIZE = 64  # questions that a checkpoint answers at once

OnAnswer = Callable[[int, Given], None]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]


class Answerer(Protocol):
    """A checkpoint or a bundle. name: its path; digest: "sha256:..." of what it is made of; budgets: where answers are cut."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def budgets(self) -> Budgets: ...

    def answers(self, samples: Sequence[Sample], *, pictures: Pictures = CLEAN, on_answer: OnAnswer | None = None) -> list[Given]:
        """Greedy answers in the order of `samples`. on_answer(index, given): told of each as it comes, in any order.

        Raises DataError naming the record with a picture or question that cannot be used.
        """
        ...


@dataclass(frozen=True)
class AnswererSettings:
    """How answers are made. device ("auto": CUDA where there is one), precision, batch_size (questions): of a checkpoint.

    backend, threads (of one operator, None = all cores): of a bundle; a checkpoint takes torch's own threads. max_new_tokens: of
    every answer, or by capability; None = what the model was made for. structured: answers as JSON under a schema a capability.
    """

    device: str = "auto"
    precision: Precision = "fp32"
    batch_size: int = BATCH_SIZE
    max_new_tokens: int | Mapping[str, int] | None = None
    backend: str = "auto"
    threads: int | None = None
    structured: bool = False
