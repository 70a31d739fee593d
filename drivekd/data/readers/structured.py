"""A record's own structured answer: an object of the schema that the runtime has for its capability."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from drivekd.sample import CAPABILITIES

from .problem import Faults, check_surrogates
from .turns import found


def checked_structured(value: object, capability: object, cameras: Sequence[str], faults: Faults) -> str | None:
    """Its compact JSON, `complete` last; None without one, or with a fault, which is added. cameras: the record's, () = any."""
    if value is None or capability not in CAPABILITIES:
        return None
    if not isinstance(value, dict):
        faults.add("structured", f"structured: expected an object, found {found(value)}")
        return None
    answer = whole_answer(value)
    if (fault := structured_fault(str(capability), cameras, answer)) is not None:
        faults.add("structured", f"structured: {fault}")
        return None
    text = structured_text(answer)
    check_surrogates(faults, structured=text)
    return text


def whole_answer(value: dict[str, Any]) -> dict[str, Any]:
    """The same with `complete`, which need not be stated, as the last property."""
    from drivekd.runtime.answers.schemas import COMPLETE

    return {**{name: part for name, part in value.items() if name != COMPLETE}, COMPLETE: value.get(COMPLETE, True)}


def structured_fault(capability: str, cameras: Sequence[str], answer: dict[str, Any]) -> str | None:
    """What keeps an answer from being one that a model shall learn, naming its place; None when nothing does."""
    from drivekd.runtime.answers.answer import says_nothing
    from drivekd.runtime.answers.schemas import COMPLETE, default_schemas, valid_answer

    fault = valid_answer(default_schemas(cameras)[capability], answer)
    if fault is not None:
        return fault
    if not answer[COMPLETE]:
        return f"answer.{COMPLETE}: false, but what is learnt is a whole answer"
    return "nothing but null stands in it; leave the key out" if says_nothing(answer) else None


def structured_text(answer: dict[str, Any]) -> str:
    """The JSON as a grammar lets a model write it."""
    return json.dumps(answer, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
