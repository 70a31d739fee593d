"""The one face of a session, whether it works here (Session), in a process of its own (WorkerSession) or on rungs (Ladder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from drivekd.images import RGBImage

from .answers.answer import Answer
from .bundle.manifest import Manifest, Variable
from .meters.health import HealthSnapshot
from .session.generation import Cancelled, OnText
from .session.sampling import GREEDY, Sampling


class AnswerSession(Protocol):
    """Session says what each of these means."""

    timings_ms: dict[str, float]
    counts: dict[str, int]

    @property
    def capabilities(self) -> tuple[str, ...]: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def variables(self) -> dict[str, Variable]: ...
    @property
    def bundle_digest(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...

    def answer(
        self,
        images: Mapping[str, RGBImage],
        *,
        capabilities: Sequence[str] | None = None,
        question: str | None = None,
        variables: Mapping[str, object] | None = None,
        deadline_ms: float | None = None,
        on_text: OnText | None = None,
        max_new_tokens: int | None = None,
        structured: bool = False,
        sampling: Sampling = GREEDY,
        cancelled: Cancelled | None = None,
    ) -> dict[str, Answer]: ...

    def health(self) -> HealthSnapshot: ...

    def close(self) -> None: ...
