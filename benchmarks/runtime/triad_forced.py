"""What forced tokens save on answers as a model would give them: the engine works, but says given texts.

Random weights write other JSON than a trained student: long strings, in which nothing is forced. So the decoder runs as ever,
and behind each call its logits are replaced by ones that want the next token of a written answer. Grammar, scheduling and engine
calls are the runtime's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.answers.grammar import Constraint
from drivekd.runtime.decoder.protocol import Cache, Decoder, Logits
from drivekd.runtime.session.triad import Branch, branch, decode

WANTED = 1e4  # a logit that no grammar's mask leaves in doubt

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")  # of the answers below
ANSWERS: dict[str, dict[str, Any]] = {
    "perception": {
        "objects": [
            {"camera": "CAM_FRONT", "position": [812, 430], "category": "car", "status": "braking"},
            {"camera": "CAM_FRONT_LEFT", "position": [233, 467], "category": "pedestrian", "status": "waiting at the kerb"},
            {"camera": "CAM_FRONT", "position": [1044, 210], "category": "traffic_light", "status": "red"},
            {"camera": "CAM_BACK", "position": [640, 455], "category": "truck", "status": "following"},
        ],
        "complete": True,
    },
    "reasoning": {
        "objects": [
            {"object": "white car ahead", "state": "braking hard", "effect": "the gap closes; slow down now"},
            {"object": "pedestrian on the left", "state": "about to cross", "effect": "may enter the lane"},
        ],
        "complete": True,
    },
    "planning": {
        "actions": ["slow_down", "keep_lane"],
        "reason": "The car ahead brakes for a red light and a pedestrian may cross.",
        "probability": 0.9,
        "complete": True,
    },
}


def texts(capabilities: Sequence[str], cameras: Sequence[str]) -> list[str]:
    """The written answers of these capabilities as compact JSON. cameras: the bundle's, () = any name."""
    text = {name: json.dumps(ANSWERS[name], separators=(",", ":")) for name in capabilities}
    for name, own in zip(CAMERAS, cameras, strict=False):
        text = {capability: said.replace(f'"{name}"', f'"{own}"') for capability, said in text.items()}
    return list(text.values())


class EveryToken:
    """A constraint that keeps to itself what it could force: every token is chosen, and costs an engine call."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint

    def opening(self) -> list[int]:
        return []

    def forced(self) -> list[int]:
        return []

    def allows(self, token: int) -> bool:
        return self._constraint.allows(token)

    def mask(self, logits: NDArray[np.float32]) -> None:
        self._constraint.mask(logits)

    def accept(self, token: int) -> None:
        self._constraint.accept(token)

    @property
    def finished(self) -> bool:
        return self._constraint.finished


@dataclass(frozen=True)
class ScriptedCache:
    """A cache, what each row is to say, and the tokens of it that the row has read."""

    cache: Cache
    scripts: list[str]
    said: list[list[int]]

    @property
    def batch(self) -> int:
        return self.cache.batch

    def compact(self, rows: Sequence[int]) -> ScriptedCache:
        return ScriptedCache(self.cache.compact(rows), [self.scripts[row] for row in rows], [self.said[row] for row in rows])


class ScriptedDecoder:
    """The face that `decode` knows, over a real decoder."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, stop_id: int) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._stop_id = stop_id

    def read(self, sequences: Sequence[Sequence[int]], cache: ScriptedCache, *stops: Any) -> tuple[Logits, ScriptedCache]:
        return self._went_on(self._decoder.read(sequences, cache.cache, *stops), sequences, cache)

    def step(self, tokens: Sequence[int], cache: ScriptedCache) -> tuple[Logits, ScriptedCache]:
        return self._went_on(self._decoder.step(tokens, cache.cache), [[token] for token in tokens], cache)

    def wanted(self, logits: Logits, cache: ScriptedCache) -> Logits:
        """Logits [B, V] that want each row's next token."""
        logits[:] = 0
        for row, (script, said) in enumerate(zip(cache.scripts, cache.said, strict=True)):
            logits[row, self._next_token(script, said)] = WANTED
        return logits

    def _went_on(
        self, found: tuple[Logits, Cache], read: Sequence[Sequence[int]], cache: ScriptedCache
    ) -> tuple[Logits, ScriptedCache]:
        said = [[*before, *new] for before, new in zip(cache.said, read, strict=True)]
        after = ScriptedCache(found[1], cache.scripts, said)
        return self.wanted(found[0], after), after

    def _next_token(self, script: str, said: Sequence[int]) -> int:
        """The first token of what is left, in the tokenizer's own words."""
        rest = script[len(self._tokenizer.decode(list(said))) :]
        return int(self._tokenizer.encode(rest, add_special_tokens=False).ids[0]) if rest else self._stop_id


def say(
    decoder: Decoder,
    prefix: Cache,
    questions: Sequence[Sequence[int]],
    branches: list[Branch],
    scripts: list[str],
    tokenizer: Tokenizer,
    stop_id: int,
) -> float:
    """Decode the scripts as answers to the questions, whose branches are at their start (`opened`). Returns when decoding began.

    Raises ValueError when a branch has said something else.
    """
    room = max(map(len, scripts))  # no token is shorter than a character
    opening = [list(state.tokens) for state in branches]
    scripted = ScriptedDecoder(decoder, tokenizer, stop_id)
    logits, cache = branch(
        decoder,
        prefix,
        [[*question, *tokens] for question, tokens in zip(questions, opening, strict=True)],
        room=room,
    )
    start, started_s = ScriptedCache(cache, scripts, opening), time.perf_counter()
    decode(
        scripted,  # type: ignore[arg-type]
        scripted.wanted(logits, start),
        start,  # type: ignore[arg-type]
        stop_id=stop_id,
        max_new_tokens=room,
        deadline=Deadline(),
        on_token=lambda row, state: None,
        branches=branches,
    )
    for script, state in zip(scripts, branches, strict=True):
        if (found := tokenizer.decode(state.tokens)) != script:
            raise ValueError(f"expected {script!r}, the branch said {found!r}")
    return started_s
