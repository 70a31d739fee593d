"""The body of a chat completion, as any compatible server may send it: checked field by field, since many are nearly right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


class NotACompletion(ValueError):
    """Why a body is none, in a few words."""


@dataclass(frozen=True)
class Completion:
    """text: what the model wrote, "" where it wrote nothing. prompt_tokens, reply_tokens: None where the server did not count.
    served_by: the model's full name, as the server says it."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    reply_tokens: int | None
    served_by: str


def completion_from_body(body: bytes) -> Completion:
    """Read the one choice of a completion. Raises NotACompletion."""
    try:
        value = json.loads(body)
    except ValueError as error:
        raise NotACompletion(f"not JSON, {len(body)} bytes") from error
    if not isinstance(value, dict):
        raise NotACompletion("JSON, but no object")
    if value.get("error"):
        raise NotACompletion("an error in place of a completion")
    message, finish_reason = _choice(value)
    counts = value.get("usage")
    usage = counts if isinstance(counts, dict) else {}
    served_by = value.get("model")
    return Completion(
        text=message,
        finish_reason=finish_reason,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        reply_tokens=_count(usage.get("completion_tokens")),
        served_by=served_by if isinstance(served_by, str) else "",
    )


def _choice(value: dict[str, Any]) -> tuple[str, str]:
    choices = value.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise NotACompletion("without choices")
    message = choices[0].get("message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise NotACompletion("without the text of a message")
    finish_reason = choices[0].get("finish_reason")
    return message.get("content") or "", finish_reason if isinstance(finish_reason, str) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
