"""What another engine answered to the golden prompts, read from its file.

Two formats are understood:

    {"answers": {capability: {"tokens": [ids]}}}       plain; {"text": "..."} in place of tokens, and further keys, are fine:
                                                       what `drivekd run --json` prints can be judged as it is
    {"responses": [{"output_text": "...", ...}, ...]}  TensorRT Edge-LLM's llm_inference, one response a capability in the order
                                                       of the bundle's prompts; its token ids are preferred where it has them

Edge-LLM 0.4 to 0.10 write text only; where `num_logprobs` was 1 (0.9 and later) its entries hold the ids of the likeliest tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivekd.errors import DataError

MAX_OUTPUTS_BYTES = 64 << 20  # three answers are some kB; a path to the wrong file must not fill the memory
TOKEN_KEYS = ("output_ids", "output_token_ids", "token_ids")


@dataclass(frozen=True)
class EngineAnswer:
    """tokens: the answer's ids, with or without its end of turn; None when the engine gave only text."""

    tokens: tuple[int, ...] | None
    text: str


def read_outputs(path: Path, questions: Mapping[str, str]) -> dict[str, EngineAnswer]:
    """Read an engine's answers. questions: the literal question of each capability, in the bundle's order.

    Raises DataError naming file and place: no JSON, neither format, a capability without answer, a wrong type, other questions.
    """
    value = _read_json(path)
    if isinstance(value, dict) and "answers" in value:
        return _plain_answers(value["answers"], questions, f"{path}: answers")
    if isinstance(value, dict) and "responses" in value:
        return _edgellm_answers(value["responses"], questions, f"{path}: responses")
    raise DataError(
        f'{path}: expected {{"answers": {{capability: {{"tokens": [...]}} or {{"text": "..."}}}}}} or the "responses" of '
        f"TensorRT Edge-LLM's llm_inference, found {_shown(value)}"
    )


def _read_json(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > MAX_OUTPUTS_BYTES:
            raise DataError(f"{path}: {size:,} bytes; answers to a bundle's questions are at most {MAX_OUTPUTS_BYTES:,}")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        raise DataError(f"{path}: not valid JSON ({error}); was the engine stopped while it wrote?") from error


def _plain_answers(value: Any, questions: Mapping[str, str], where: str) -> dict[str, EngineAnswer]:
    entries = _object(value, where)
    if unknown := [name for name in entries if name not in questions]:
        raise DataError(f"{where}: {unknown[0]!r} is no capability of this bundle; it has {', '.join(questions)}")
    if missing := [name for name in questions if name not in entries]:
        raise DataError(f"{where}: no answer to {missing[0]!r}; expected one for each of {', '.join(questions)}")
    return {name: _plain_answer(_object(entries[name], f"{where}.{name}"), f"{where}.{name}") for name in questions}


def _plain_answer(entry: dict[str, Any], where: str) -> EngineAnswer:
    tokens, text = entry.get("tokens"), entry.get("text")
    if isinstance(tokens, list):
        return EngineAnswer(_ids(tokens, f"{where}.tokens"), _text(text, f"{where}.text") if text is not None else "")
    if text is None:
        raise DataError(f'{where}: expected "tokens" (a list of ids) or "text", found {_shown(entry)}')
    return EngineAnswer(None, _text(text, f"{where}.text"))


def _edgellm_answers(value: Any, questions: Mapping[str, str], where: str) -> dict[str, EngineAnswer]:
    if not isinstance(value, list) or len(value) != len(questions):
        found = f"{len(value)} responses" if isinstance(value, list) else _shown(value)
        raise DataError(f"{where}: expected {len(questions)}, one for each of {', '.join(questions)}, found {found}")
    answers = {}
    for index, (name, question) in enumerate(questions.items()):
        place = f"{where}[{index}]"
        entry = _object(value[index], place)
        _check_question(entry, name, question, place)
        answers[name] = EngineAnswer(_edgellm_ids(entry, place), _text(entry.get("output_text"), f"{place}.output_text"))
    return answers


def _check_question(entry: dict[str, Any], name: str, question: str, where: str) -> None:
    """llm_inference repeats each request's messages: an answer to another question must not be judged as this one's."""
    messages = entry.get("messages")
    if messages is None:
        return
    texts = [part["text"] for part in _contents(messages) if isinstance(part.get("text"), str)]
    if question not in texts:
        asked = _shown(texts[-1]) if texts else "no text"
        raise DataError(f"{where}: expected the answer to the {name} question {question!r:.90}, it answers {asked}")


def _contents(messages: Any) -> list[dict[str, Any]]:
    parts: list[Any] = []
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts += content if isinstance(content, list) else [{"text": content}]
    return [part for part in parts if isinstance(part, dict)]


def _edgellm_ids(entry: dict[str, Any], where: str) -> tuple[int, ...] | None:
    for key in TOKEN_KEYS:
        if key in entry:
            return _ids(entry[key], f"{where}.{key}")
    if "logprobs" not in entry:
        return None
    steps = entry["logprobs"]
    if not isinstance(steps, list) or not all(isinstance(step, list) and step and isinstance(step[0], dict) for step in steps):
        raise DataError(f"{where}.logprobs: expected one list of candidates a token, found {_shown(steps)}")
    return _ids([step[0].get("token_id") for step in steps], f"{where}.logprobs")


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list of token ids, found {_shown(value)}")
    for index, item in enumerate(value):
        if type(item) is not int or item < 0:  # True is an int to Python, not to an engine
            raise DataError(f"{where}[{index}]: expected a token id, found {_shown(item)}")
    return tuple(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a text, found {_shown(value)}")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """What was found, short: a list of a thousand ids is no help in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list, Sequence)) and not isinstance(value, str) and not value:
        return f"an empty {'object' if isinstance(value, dict) else 'list'}"
    return f"{value!r:.80}"
