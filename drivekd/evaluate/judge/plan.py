"""Which calls an evaluation folder needs: one a prompt, however many questions share it, and none where a reply is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivekd.evaluate.judge.client import request_for
from drivekd.evaluate.judge.descriptions import read_descriptions
from drivekd.evaluate.judge.prompts import Messages, messages_for
from drivekd.evaluate.judge.questions import Question
from drivekd.evaluate.judge.rubrics import Rubric, rubric_for
from drivekd.evaluate.judge.settings import JudgeSettings
from drivekd.files import json_digest
from drivekd.tags import coordinate_style

BYTES_PER_TOKEN = 4  # of English under byte-pair tokenizers; for estimates. No text has more tokens than bytes.
TYPICAL_REPLY_TOKENS = 150  # six short lines and the total
CHAT_TOKENS = 32  # at most, of a chat template around two turns


@dataclass(frozen=True)
class Task:
    """One prompt, written out only when it is sent. key: of what decides its reply. prompt_bytes: of all its texts. own_rubric:
    DriveBench has a rubric for just this kind of question. description: of the question's objects, for the judge."""

    key: str
    question: Question
    rubric: Rubric
    own_rubric: bool
    description: str
    prompt_bytes: int

    @property
    def messages(self) -> Messages:
        """The conversation to send."""
        return messages_for(self.question, self.rubric, self.description)

    @property
    def prompt_tokens(self) -> int:
        """About."""
        return self.prompt_bytes // BYTES_PER_TOKEN

    @property
    def most_prompt_tokens(self) -> int:
        """A bound for every tokenizer that starts from bytes."""
        return self.prompt_bytes + CHAT_TOKENS


@dataclass(frozen=True)
class Plan:
    """questions: those to judge, each with its task. left_out: why others are not, with how many. described: questions whose
    objects were described to the judge; None where no descriptions were given."""

    questions: tuple[tuple[Question, Task], ...]
    left_out: dict[str, int]
    described: int | None

    @property
    def tasks(self) -> dict[str, Task]:
        """By key, in the order of the questions."""
        return {task.key: task for _, task in self.questions}


def plan_calls(questions: Sequence[Question], settings: JudgeSettings) -> Plan:
    """What to ask. Raises DataError for broken object descriptions."""
    wanted, left_out = _wanted(questions, settings)
    path = settings.object_descriptions
    descriptions = read_descriptions(path) if path is not None else None
    style = coordinate_style(text for one in questions for text in (one.question, one.reference))
    planned, described = [], 0
    for question in wanted:
        description = descriptions.of(question, style) if descriptions is not None else ""
        described += bool(description)
        planned.append((question, _task(question, settings, description)))
    return Plan(tuple(planned), left_out, described if descriptions is not None else None)


def _wanted(questions: Sequence[Question], settings: JudgeSettings) -> tuple[list[Question], dict[str, int]]:
    with_reference = [one for one in questions if one.reference.strip()]
    wanted = [one for one in with_reference if not settings.only or one.capability in settings.only]
    left_out = {
        "without a reference answer": len(questions) - len(with_reference),
        "of other capabilities than `only`": len(with_reference) - len(wanted),
    }
    return wanted, {reason: count for reason, count in left_out.items() if count}


def _task(question: Question, settings: JudgeSettings, description: str) -> Task:
    rubric, own = rubric_for(question.capability, question.topic, question.form)
    messages = messages_for(question, rubric, description)
    key = json_digest({"endpoint": settings.url, **request_for(messages, settings)})
    prompt_bytes = sum(len(message["content"].encode()) for message in messages)
    return Task(key, question, rubric, own, description, prompt_bytes)
