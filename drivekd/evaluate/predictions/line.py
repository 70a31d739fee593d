"""One line of predictions.jsonl: a question, all that its record says of it, and the answer."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.answered import Answered, Given
from drivekd.errors import DataError
from drivekd.sample import ANSWER_FORMS, CAPABILITIES, Sample

ROUNDING = 1e-3  # a mean log-probability in half precision may come out above 0


@dataclass(frozen=True)
class Line:
    """index: of the record among all of its file, from 0; with the setting, it says which question this is."""

    index: int
    answered: Answered

    @property
    def key(self) -> tuple[str, int]:
        """Setting and index."""
        return self.answered.setting, self.index

    def to_text(self) -> str:
        """One line of JSON, its end included."""
        sample, given = self.answered.sample, self.answered.given
        value = {
            "index": self.index,
            "source": sample.source,
            "id": sample.id,
            "capability": sample.capability,
            "topic": sample.topic,
            "form": sample.answer_form,
            "question": sample.question,
            "answer": sample.answer,
            "structured": sample.structured,
            "scene": sample.scene,
            "frame": sample.frame,
            "cameras": list(sample.cameras),
            "images": [str(image) for image in sample.images],
            "tag": list(sample.tag),
            "hop": sample.hop,
            "setting": self.answered.setting,
            "severity": self.answered.severity,
            "prediction": given.text,
            "finish_reason": given.finish_reason,
            "tokens": given.tokens,
            "mean_logprob": given.mean_logprob,
        }
        return json.dumps(value, allow_nan=False) + "\n"


def line_from_text(text: str, source: str) -> Line:
    """What `Line.to_text` wrote. Raises DataError naming `source`, the field and what is wrong with it."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not a line of JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected an object, found {text:.80}")
    fields = _Fields(value, source)
    sample = Sample(
        source=fields.text("source"),
        capability=fields.word("capability", CAPABILITIES),
        question=fields.text("question"),
        answer=fields.optional("answer", str),
        images=tuple(Path(image) for image in fields.texts("images")),
        answer_form=fields.word("form", ANSWER_FORMS),
        topic=fields.text("topic"),
        scene=fields.text("scene"),
        frame=fields.text("frame"),
        cameras=tuple(fields.texts("cameras")),
        id=fields.text("id"),
        tag=tuple(fields.numbers("tag")),
        hop=fields.optional("hop", int),
        structured=fields.optional("structured", str),
    )
    given = Given(
        fields.text("prediction"), fields.word("finish_reason", ("stop", "length")), fields.number("tokens"), fields.logprob()
    )
    answered = Answered(sample, given, fields.name("setting"), fields.optional("severity", int))
    return Line(fields.number("index"), answered)


@dataclass(frozen=True)
class _Fields:
    value: dict[str, Any]
    source: str

    def text(self, name: str) -> str:
        return str(self._one(name, str, "text"))

    def name(self, name: str) -> str:
        """It becomes part of a file's name."""
        found = self.text(name)
        if re.fullmatch(r"\w+", found) is None:
            raise self._error(name, "a word")
        return found

    def number(self, name: str) -> int:
        found = int(self._one(name, int, "a whole number"))
        if found < 0:
            raise self._error(name, "a number from 0 on")
        return found

    def texts(self, name: str) -> list[str]:
        return self._list(name, str, "an array of texts")

    def numbers(self, name: str) -> list[int]:
        return self._list(name, int, "an array of whole numbers")

    def optional(self, name: str, kind: type) -> Any:
        found = self.value.get(name)
        return None if found is None else self._one(name, kind, f"{kind.__name__} or null")

    def word(self, name: str, known: tuple[str, ...]) -> Any:
        found = self.value.get(name)
        if found not in known:
            raise self._error(name, " or ".join(known))
        return found

    def logprob(self) -> float | None:
        found = self.value.get("mean_logprob")
        if found is None:
            return None
        if type(found) not in (int, float) or not math.isfinite(found) or found > ROUNDING:
            raise self._error("mean_logprob", "a finite logarithm of a probability, at most 0, or null")
        return float(found)

    def _one(self, name: str, kind: type, told: str) -> Any:
        if type(self.value.get(name)) is not kind:
            raise self._error(name, told)
        return self.value[name]

    def _list(self, name: str, kind: type, told: str) -> list[Any]:
        found = self.value.get(name)
        if type(found) is not list or any(type(item) is not kind for item in found):
            raise self._error(name, told)
        return found

    def _error(self, name: str, told: str) -> DataError:
        found = repr(self.value[name])[:80] if name in self.value else "nothing"
        return DataError(f"{self.source}: {name}: expected {told}, found {found}; is this a predictions.jsonl of drivekd eval?")
