"""The turns of a record in any of the spellings that LLaMA-Factory, ms-swift, ShareGPT and the chat APIs use.

    "messages": [{"role": "user", "content": "..."}, ...]            "conversations": [{"from": "human", "value": "..."}, ...]
    content: a text, or a list of {"type": "text", "text"}, {"type": "image", "image"}, {"type": "image_url", "image_url": {...}}

A list becomes one text with `<image>` where a picture stands, and the pictures' paths. What is not read is named: tools, videos,
audio, other roles, preference pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drivekd.data.json_file import json_type

from .markers import IMAGE_MARKER
from .problem import Faults

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_OTHER_FORMS = {  # a key of another layout -> what it is
    "instruction": "an Alpaca record (instruction, output)",
    "chosen": "a preference pair (chosen, rejected)",
    "query": "an ms-swift query/response record",
    "gt_answer": "a prediction (id, question, gt_answer, answer)",
}
_NOT_READ = ("videos", "audios", "tools")  # of a record: they change what the answer is about


@dataclass(frozen=True)
class Turn:
    """One message. role: user | assistant | system | "" when unknown. field: its place in the record, for problems.
    pictures: paths that a content list holds, as written."""

    role: str
    text: str
    field: str
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A question and its answer (None where there is none), with the turns before it."""

    before: tuple[Turn, ...]
    user: Turn
    answer: Turn | None


def exchanges(record: dict[str, Any], faults: Faults) -> list[Exchange]:
    """Every user turn of a record with its answer, in order; empty when there is a problem with the turns."""
    for key in _NOT_READ:
        if record.get(key):
            faults.add("messages", f"{key}: {key} are not read; take them out, or the record")
    found = _turns(record, faults)
    if not found:
        return []
    if record.get("system") or found[0].role == "system":
        faults.note("system turn left out: the checkpoint's own prompt holds")
    spoken = found[1:] if found[0].role == "system" else found
    roles = [turn.role for turn in spoken]
    if not roles or roles != [("user", "assistant")[place % 2] for place in range(len(roles))]:
        if "" not in roles:  # an unknown role is named already
            shown = ", ".join(turn.role for turn in found[:6])
            faults.add(
                "messages", f"{_key(record)}: expected the roles user, assistant; found {shown}{', ...' * (len(found) > 6)}"
            )
        return []
    return [
        Exchange(tuple(spoken[:place]), spoken[place], spoken[place + 1] if place + 1 < len(spoken) else None)
        for place in range(0, len(spoken), 2)
    ]


def _key(record: dict[str, Any]) -> str:
    return "messages" if "messages" in record or "conversations" not in record else "conversations"


def _turns(record: dict[str, Any], faults: Faults) -> list[Turn]:
    key = _key(record)
    value = record.get(key)
    if not isinstance(value, list) or not value:
        other = next((name for mark, name in _OTHER_FORMS.items() if mark in record), None) if value is None else None
        what = f"{other}, which is not read" if other else found(value)
        faults.add("messages", f"{key}: expected a user and an assistant message, found {what}")
        return []
    return [_turn(message, f"{key}[{place}]", faults) for place, message in enumerate(value)]


def _turn(message: object, field: str, faults: Faults) -> Turn:
    fields = message if isinstance(message, dict) else {}
    name = fields.get("role", fields.get("from"))
    role = ROLES.get(name, "") if isinstance(name, str) else ""
    content_key = "value" if "value" in fields and "content" not in fields else "content"
    text, pictures = _content(fields.get(content_key), f"{field}.{content_key}", faults)
    if not role and fields:
        faults.add("messages", f"{field}: expected the role user, assistant or system; found {found(name)}")
    for extra in ("tool_calls", "function_call"):
        if fields.get(extra):
            faults.add("messages", f"{field}.{extra}: calls of tools are not read")
    return Turn(role, text, f"{field}.{content_key}", pictures)


def _content(value: object, field: str, faults: Faults) -> tuple[str, tuple[str, ...]]:
    if isinstance(value, str):
        return value, ()
    if not isinstance(value, list) or not value:
        faults.add("messages", f"{field}: expected a string, found {found(value)}")
        return "", ()
    texts, pictures = [], []
    for place, item in enumerate(value):
        text, picture = _item(item, f"{field}[{place}]", faults)
        texts.append(text)
        pictures += [picture] if picture else []
    return "".join(texts), tuple(pictures)


def _item(item: object, field: str, faults: Faults) -> tuple[str, str]:
    """(text, path of a picture or empty) of one entry of a content list."""
    fields = item if isinstance(item, dict) else {"type": "text", "text": item}
    kind = fields.get("type", "text" if "text" in fields else "image" if "image" in fields else None)
    if kind == "text" and isinstance(fields.get("text"), str):
        return str(fields["text"]), ""
    if kind in ("image", "image_url"):
        picture = next((fields[key] for key in ("image", "image_url", "url", "path") if fields.get(key)), "")
        picture = picture.get("url", "") if isinstance(picture, dict) else picture
        return IMAGE_MARKER, picture if isinstance(picture, str) else ""
    faults.add("messages", f"{field}: expected text or an image, found {found(kind if kind != 'text' else fields.get('text'))}")
    return "", ""


def found(value: object) -> str:
    """A value in a few words, for messages."""
    if value in ("", [], {}):
        return f"an empty {'string' if value == '' else 'array' if value == [] else 'object'}"
    return repr(value)[:80] if isinstance(value, str | list) else json_type(value)
