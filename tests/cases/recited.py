"""An answerer whose texts are known, and samples for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from drivekd.answered import Given
from drivekd.evaluate.answering import CLEAN, Budgets, OnAnswer, Pictures
from drivekd.sample import Sample


class Recited:
    """Answers with `text(sample)`; asked: the samples of all calls, in order, with the setting."""

    name = "recited"
    digest = "sha256:0"
    budgets = Budgets()

    def __init__(self, text: Callable[[Sample], str]) -> None:
        self.text = text
        self.asked: list[tuple[str, str]] = []

    def answers(self, samples: Sequence[Sample], *, pictures: Pictures = CLEAN, on_answer: OnAnswer | None = None) -> list[Given]:
        given = []
        for place, sample in enumerate(samples):
            given.append(Given(self.text(sample), tokens=1, mean_logprob=-0.5))
            self.asked.append((pictures.setting, sample.source))
            if on_answer is not None:
                on_answer(place, given[-1])
        return given


def questions(count: int, frames: int = 5) -> list[Sample]:
    """Yes or no, about so many frames."""
    return [
        Sample(
            f"f.json, record {index + 1}",
            "planning",
            f"Is it {index}?",
            "Yes." if index % 2 else "No.",
            (Path(f"{index % frames}.jpg"),),
            "yesno",
            scene="s",
            frame=str(index % frames),
        )
        for index in range(count)
    ]
