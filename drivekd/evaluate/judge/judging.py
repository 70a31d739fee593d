"""`drivekd judge`: an evaluation folder's answers go to a judge, and its scores stand beside the accuracy, never in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from drivekd.errors import JudgeError
from drivekd.evaluate.judge import rubrics
from drivekd.evaluate.judge.client import TEMPERATURE, Endpoint, Judge, Reply, Stopped, Unanswered
from drivekd.evaluate.judge.plan import BYTES_PER_TOKEN, TYPICAL_REPLY_TOKENS, Plan, Task, plan_calls
from drivekd.evaluate.judge.pool import Book, Budget, End, ask_all
from drivekd.evaluate.judge.questions import read_questions
from drivekd.evaluate.judge.replies import NoScore, total_score
from drivekd.evaluate.judge.settings import JudgeSettings, read_key
from drivekd.evaluate.judge.store import Line, ReplyStore, open_store
from drivekd.evaluate.judge.summary import JudgedQuestion, JudgeRow, failures_by_kind, judge_rows, judged, write_summary

NUM_PROMPTS_SHOWN = 2


@dataclass(frozen=True)
class JudgeReport:
    """rows: scores by group and picture setting. facts: what judge.json says of judge, counts and cost. missing: questions
    without a reply. stopped: why the run ended before them, "" when it asked everything."""

    rows: tuple[JudgeRow, ...]
    facts: dict[str, Any]
    missing: int
    stopped: str

    def check(self) -> None:
        """Raises JudgeError when questions are left."""
        if self.missing:
            errors = self.facts["errors"]
            why = self.stopped or "; ".join(f"{count} x {reason}" for reason, count in errors.items())
            raise JudgeError(f"{self.missing} questions have no reply: {why}. What was judged is kept; the same command goes on")


@dataclass(frozen=True)
class DryRun:
    """rows: (what, how much). prompts: the first ones, as they would be sent."""

    rows: tuple[tuple[str, str], ...]
    prompts: tuple[str, ...]


def dry_run(folder: Path, settings: JudgeSettings) -> DryRun:
    """What `judge_folder` would ask and cost; asks nobody, needs no key and writes nothing. Raises as it does."""
    plan = plan_calls(read_questions(folder), settings)
    with open_store(folder, write=False) as store:
        to_ask = _to_ask(plan, store, settings)
    prompt_tokens = sum(task.prompt_tokens for task in to_ask)
    cost = settings.cost(prompt_tokens, TYPICAL_REPLY_TOKENS * len(to_ask))
    most = settings.cost(prompt_tokens, settings.max_reply_tokens * len(to_ask))
    rows = (
        ("judge", f"{settings.model} at {settings.host}, rubrics {rubrics.VERSION}"),
        ("questions", str(len(plan.questions))),
        *((f"  {reason}", str(count)) for reason, count in plan.left_out.items()),
        ("different prompts", str(len(plan.tasks))),
        ("  of which a reply is kept", str(len(plan.tasks) - len(to_ask))),
        ("calls", str(len(to_ask))),
        ("prompt tokens, estimated", f"{prompt_tokens:,} ({BYTES_PER_TOKEN} bytes a token)"),
        (
            "reply tokens, estimated",
            f"{TYPICAL_REPLY_TOKENS * len(to_ask):,} (at most {settings.max_reply_tokens * len(to_ask):,})",
        ),
        ("cost, estimated", "no prices given" if cost is None or most is None else f"{cost:.2f} (at most {most:.2f})"),
        *_description_rows(plan),
    )
    return DryRun(rows, tuple(_as_text(task) for task in to_ask[:NUM_PROMPTS_SHOWN]))


def _description_rows(plan: Plan) -> list[tuple[str, str]]:
    return [] if plan.described is None else [("with descriptions of objects", str(plan.described))]


def _as_text(task: Task) -> str:
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in task.messages)


def judge_folder(
    folder: Path,
    settings: JudgeSettings,
    *,
    judge: Judge | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> JudgeReport:
    """Ask for every score that is not kept yet, then write judge.json and judge_scores.jsonl; judge.jsonl grows with each reply.

    judge: who answers, the settings' endpoint without one. on_progress: calls that ended, calls in all, what was spent.
    Raises UsageError, DataError, and JudgeError when no call can succeed; what was judged before is kept and summed up.
    """
    plan = plan_calls(read_questions(folder), settings)
    stop = threading.Event()
    with open_store(folder) as store:
        to_ask = _to_ask(plan, store, settings)
        if judge is None and to_ask:
            judge = Endpoint(settings, read_key(settings), stop)
        run = _Run(settings, store, len(to_ask), on_progress)
        stopped = ""
        try:
            if to_ask:
                assert judge is not None
                book = Book(run.budget, run.most_cost, run.on_end)
                stopped = ask_all(to_ask, judge, stop, concurrency=settings.concurrency, book=book)
        finally:
            report = _report(plan, store, settings, run, stopped)
            write_summary(folder, *report[:2], report[2].facts)
    return report[2]


def _to_ask(plan: Plan, store: ReplyStore, settings: JudgeSettings) -> list[Task]:
    return [
        task for key, task in plan.tasks.items() if key not in store.replies or (settings.ask_again and not _scores(store, key))
    ]


def _scores(store: ReplyStore, key: str) -> bool:
    line = store.replies[key]
    try:
        total_score(line.reply or "", finished=line.finish_reason != "length")
    except NoScore:
        return False
    return True


class _Run:
    """Turns ends into lines and costs, in the one thread that writes."""

    def __init__(
        self, settings: JudgeSettings, store: ReplyStore, total: int, on_progress: Callable[[int, int, float], None] | None
    ) -> None:
        self._settings, self._store, self._total, self._on_progress = settings, store, total, on_progress
        self.name = f"{settings.model} at {settings.host}"
        self.budget = Budget(settings.max_cost, sum((line.cost or 0) + line.cost_unknown for line in store.lines_of(self.name)))
        self.errors: dict[str, int] = {}
        self._ended = 0

    def most_cost(self, task: Task) -> float:
        """Of a call whose reply comes at the first attempt."""
        return self._settings.cost(task.most_prompt_tokens, self._settings.max_reply_tokens) or 0.0

    def on_end(self, task: Task, end: End) -> float:
        """Keep what came; returns what it cost, at most where nobody knows."""
        self._ended += 1
        if isinstance(end, Reply):
            line = self._reply_line(task, end)
        elif isinstance(end, Unanswered):
            self.errors[end.reason] = self.errors.get(end.reason, 0) + 1
            line = self._line(task, error=end.reason, attempts=end.attempts, maybe_billed=end.maybe_billed)
        elif isinstance(end, Stopped) and end.maybe_billed:
            line = self._line(task, error="stopped", attempts=end.attempts, maybe_billed=end.maybe_billed)
        else:
            return 0.0
        self._store.add(line)
        cost = (line.cost or 0.0) + line.cost_unknown
        if self._on_progress is not None:
            self._on_progress(self._ended, self._total, self.budget.spent + cost)
        return cost

    def _reply_line(self, task: Task, end: Reply) -> Line:
        completion = end.completion
        counted = completion.prompt_tokens is not None and completion.reply_tokens is not None
        prompt_tokens = completion.prompt_tokens if completion.prompt_tokens is not None else task.prompt_tokens
        estimate = -(-len(completion.text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
        reply_tokens = completion.reply_tokens if completion.reply_tokens is not None else estimate
        return self._line(
            task,
            reply=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=prompt_tokens,
            reply_tokens=reply_tokens,
            counted=counted,
            cost=self._settings.cost(prompt_tokens, reply_tokens),
            attempts=end.attempts,
            maybe_billed=end.maybe_billed,
            seconds=round(end.seconds, 3),
            served_by=completion.served_by,
        )

    def _line(self, task: Task, *, maybe_billed: int = 0, reply: str | None = None, **fields: Any) -> Line:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        unknown = maybe_billed * self.most_cost(task)
        return Line(key=task.key, judge=self.name, rubric=task.rubric.name, reply=reply, cost_unknown=unknown, time=now, **fields)


def _report(
    plan: Plan, store: ReplyStore, settings: JudgeSettings, run: _Run, stopped: str
) -> tuple[Sequence[JudgedQuestion], Sequence[JudgeRow], JudgeReport]:
    results = [
        judged(question, task.key, task.rubric.name, task.own_rubric, store.replies.get(task.key))
        for question, task in plan.questions
    ]
    rows = judge_rows(results)
    missing = sum(not one.is_answered for one in results)
    facts = {
        "judge": {
            "model": settings.model,
            "endpoint_host": settings.host,
            "rubrics": rubrics.VERSION,
            "temperature": TEMPERATURE,
            "seed": settings.seed,
            "max_reply_tokens": settings.max_reply_tokens,
            "object_descriptions": settings.object_descriptions is not None,
        },
        "questions": len(results),
        "left_out": plan.left_out,
        "scored": sum(one.score is not None for one in results),
        "without_score": failures_by_kind(results),
        "not_judged": missing,
        "stopped": stopped,
        "errors": run.errors,
        "nearest_rubric": sum(one.nearest_rubric for one in results),
        "speaks_of_scores": sum(one.question.speaks_of_scores for one in results),
        **_spent(store, run.name),
    }
    return results, rows, JudgeReport(tuple(rows), facts, missing, stopped)


def _spent(store: ReplyStore, judge: str) -> dict[str, Any]:
    """Over all runs of this judge in this folder."""
    lines = store.lines_of(judge)
    costs = [line.cost for line in lines if line.cost is not None]
    return {
        "calls": sum(line.attempts for line in lines),
        "prompt_tokens": sum(line.prompt_tokens for line in lines),
        "reply_tokens": sum(line.reply_tokens for line in lines),
        "replies_without_counted_tokens": sum(line.reply is not None and not line.counted for line in lines),
        "cost": sum(costs) if costs else None,
        "cost_of_attempts_without_reply_at_most": sum(line.cost_unknown for line in lines),
        "replies_without_price": sum(line.reply is not None and line.cost is None for line in lines),
    }
