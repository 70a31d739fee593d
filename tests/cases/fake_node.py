"""The real node with a fake session: python fake_node.py --ros-args -p bundle:=FOLDER

FOLDER/fake.json holds FakeSession's fields.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from drivekd.errors import BundleError, RunnerError
from drivekd.runtime.answers.answer import Answer
from drivekd.runtime.answers.ask import Ask

ENDLESS = "Tell me everything."  # a question whose answer ends by being ended alone, however slow the machine


@dataclass
class FakeSession:
    """Answers with what it saw: mean colour of each camera, the speed, the question. delay_s: time between two words.

    fail_on_red: raises RunnerError for a picture that is mostly red. mute_on_white: answers of nulls to a white one.
    frozen_after: calls after which it hangs (0: never).
    """

    cameras: tuple[str, ...] = ("CAM_FRONT",)
    capabilities: tuple[str, ...] = ("perception", "reasoning", "planning")
    delay_s: float = 0.0
    words: int = 3
    fail_on_red: bool = False
    mute_on_white: bool = False
    frozen_after: int = 0
    bundle_digest: str = "sha256:fake"
    backend: str = "fake"
    variables: dict[str, object] = field(default_factory=lambda: {"ego_speed_mps": 8.0})
    timings_ms: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    open: bool = False

    def __enter__(self) -> FakeSession:
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False

    def answer_ask(self, images: dict[str, np.ndarray], ask: Ask) -> dict[str, Answer]:
        assert self.open, "answer outside of the context"
        self.calls += 1
        if self.frozen_after and self.calls > self.frozen_after:
            time.sleep(1000)
        seen = {name: [int(v) for v in image.reshape(-1, 3).mean(axis=0).round()] for name, image in images.items()}
        if self.fail_on_red and any(red > 200 and green < 50 for red, green, _ in seen.values()):
            raise RunnerError("the engine refused a red picture")
        if self.mute_on_white and any(min(colour) > 200 for colour in seen.values()):
            nulls = {"reason": None, "complete": True}
            return {name: Answer(name, json.dumps(nulls), structured=nulls, valid=False) for name in self.capabilities}
        endless = ask.question == ENDLESS
        for number in range(10_000 if endless else self.words):
            time.sleep(self.delay_s)
            if ask.on_text is not None:
                ask.on_text("perception", f"word{number} ")
        self.timings_ms = {"vision": 1.5, "decode": 2.5}
        speed = (ask.variables or {}).get("ego_speed_mps")
        says = json.dumps({"seen": seen, "speed": speed, "question": ask.question})
        return {
            name: Answer(name, f"{name} {says}", {"final": name}, tokens=self.words, mean_logprob=-0.5)
            for name in (["question"] if ask.question else ask.capabilities or self.capabilities)
        }


def load(bundle: Path, backend: str) -> FakeSession:
    """As drivekd.runtime.load_bundle: BundleError for a folder that is none."""
    file = bundle / "fake.json"
    if not file.is_file():
        raise BundleError(f"{bundle}: expected a bundle folder,\nfound no manifest")
    values = json.loads(file.read_text(encoding="utf-8"))
    return FakeSession(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


if __name__ == "__main__":
    from drivekd_ros.main import main

    sys.exit(main(load=load))
