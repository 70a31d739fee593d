"""The caller against servers that limit, break, dawdle and lie. No verdict here hangs on how quick this machine is."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from fake_judge import KEY, Act, FakeJudge, fake_judge, says

from drivekd.errors import ConfigError, JudgeError
from drivekd.evaluate.judge import client, waiting
from drivekd.evaluate.judge.client import Endpoint, Reply, Stopped, Unanswered
from drivekd.evaluate.judge.settings import judge_settings, read_key
from drivekd.evaluate.judge.waiting import Pause, backoff_s, retry_after_s

GOOD = says("Total Score: 50")
MESSAGES = [{"role": "user", "content": "Mark this."}]


def ask(judge: FakeJudge, *settings: str, key: str | None = KEY) -> Reply:
    return Endpoint(judge.settings(*settings), key, threading.Event()).ask(MESSAGES)


def first(*acts: Act) -> Callable[[int, str], Act]:
    """These acts, then good replies."""
    return lambda number, _: acts[number - 1] if number <= len(acts) else GOOD


def test_a_call_holds_what_a_judge_needs_and_no_more() -> None:
    with fake_judge(first()) as judge:
        reply = ask(judge, "seed=3", "max_reply_tokens=99")
    assert (reply.completion.text, reply.attempts, reply.maybe_billed) == ("Total Score: 50", 1, 0)
    assert (reply.completion.prompt_tokens, reply.completion.reply_tokens, reply.completion.served_by) == (
        100,
        20,
        "judge-1-2026",
    )
    assert judge.requests == [{"model": "judge-1", "messages": MESSAGES, "temperature": 0.0, "seed": 3, "max_tokens": 99}]
    assert judge.headers[0]["authorization"] == f"Bearer {KEY}"


def test_the_environment_sends_nothing_to_a_foreign_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-ours")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-ours")
    with fake_judge(first()) as judge:
        ask(judge, key=None)
    sent = str(judge.headers).lower()
    assert not any(word in sent for word in ("sk-of", "org-of", "project-of", "authorization"))


@pytest.mark.parametrize(
    ("act", "maybe_billed"),
    [
        (Act(429, b"{}", {"Retry-After": "0"}), 0),
        (Act(429, b"slow down", {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}), 0),
        (Act(429, b"{}", {"Retry-After": "soon"}), 0),
        (Act(500, b"<html>oops</html>", {"Content-Type": "text/html"}), 0),
        (Act(503, b""), 0),
        (Act(408, b"{}"), 0),
        (Act(drop=True), 1),
        (Act(body=b'{"choices": [{"mess', length=400), 1),
        (Act(body=b"<html>welcome</html>", headers={"Content-Type": "text/html"}), 1),
        (Act(body=b'{"choices": ['), 1),
        (Act(body=b"[]"), 1),
        (Act(body=b'{"choices": []}'), 1),
        (Act(body=b'{"choices": [{"message": {"content": 50}}]}'), 1),
        (Act(body=b'{"error": {"message": "overloaded"}}'), 1),
    ],
    ids=lambda value: f"{value.status}-{value.body[:12].decode()}" if isinstance(value, Act) else "",
)
def test_a_passing_fault_is_tried_again(act: Act, maybe_billed: int) -> None:
    with fake_judge(first(act, act)) as judge:
        reply = ask(judge)
    assert (reply.completion.text, reply.attempts, reply.maybe_billed) == ("Total Score: 50", 3, 2 * maybe_billed)
    assert len(judge.requests) == 3


def test_attempts_are_bounded_and_the_last_reason_is_told() -> None:
    with fake_judge(lambda *_: Act(502)) as judge, pytest.raises(Unanswered) as error:
        ask(judge, "retries=2")
    assert (error.value.reason, error.value.attempts, len(judge.requests)) == ("status 502", 3, 3)


def test_a_server_that_is_not_there_is_no_connection() -> None:
    with fake_judge(first()) as judge:
        pass
    with pytest.raises(Unanswered) as error:
        ask(judge, "retries=1")
    assert error.value.reason.startswith(f"no connection to {judge.url[7:-3]}")
    assert error.value.maybe_billed == 0


def test_a_reply_that_does_not_begin_is_a_time_out() -> None:
    with fake_judge(first(Act(body=b"{}", wait_s=1.0))) as judge:
        reply = ask(judge, "timeout_s=0.2")
    assert (reply.attempts, reply.maybe_billed) == (2, 1)


def test_a_reply_that_drips_is_a_time_out() -> None:
    """A byte now and then keeps a socket's own time-out from ever coming."""
    with fake_judge(lambda *_: Act(body=GOOD.body, drip_s=0.05)) as judge, pytest.raises(Unanswered) as error:
        ask(judge, "timeout_s=0.3", "retries=0")
    assert error.value.reason == "the reply did not end within timeout_s"


def test_a_reply_without_end_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BODY_BYTES", 1000)
    with fake_judge(lambda *_: Act(body=b" " * 100_000)) as judge, pytest.raises(Unanswered) as error:
        ask(judge, "retries=0")
    assert error.value.reason == "the reply is longer than 1,000 bytes"


def test_a_refused_prompt_is_not_sent_again() -> None:
    with (
        fake_judge(lambda *_: Act(400, b'{"error": {"message": "context too long"}}')) as judge,
        pytest.raises(Unanswered) as error,
    ):
        ask(judge)
    assert len(judge.requests) == 1
    assert error.value.reason.startswith("refused with status 400: ")
    assert "context too long" in error.value.reason


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (Act(401, b'{"error": {"message": "Incorrect API key provided: ' + KEY.encode() + b'"}}'), "401.*check key_env"),
        (Act(402, b"{}"), "402.*payment"),
        (Act(403, b"{}"), "403.*key_env and model"),
        (Act(404, b"{}"), "404 for model judge-1.*check endpoint"),
        (Act(405, b"{}"), "405"),
        (Act(307, b"", {"Location": "http://elsewhere.example/v1"}), "redirects to elsewhere.example"),
        (Act(429, b'{"error": {"message": "x", "code": "insufficient_quota"}}'), "no credit left"),
        (Act(429, b"{}", {"Retry-After": "3600"}), "asks to wait 3,600 s, longer than max_wait_s = 120"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Act) else "",
)
def test_what_would_meet_every_call_ends_the_run(act: Act, words: str) -> None:
    with fake_judge(lambda *_: act) as judge, pytest.raises(JudgeError, match=words) as error:
        ask(judge)
    assert len(judge.requests) == 1
    assert KEY not in str(error.value)


def test_a_server_that_repeats_the_key_does_not_spread_it() -> None:
    echo = f'{{"error": {{"message": "you sent Bearer {KEY}"}}}}'.encode()
    with fake_judge(lambda *_: Act(400, echo)) as judge, pytest.raises(Unanswered) as error:
        ask(judge)
    assert KEY not in error.value.reason
    assert "[key]" in error.value.reason
    with fake_judge(lambda *_: says(f"Your key {KEY} works.\nTotal Score: 3")) as judge:
        assert ask(judge).completion.text == "Your key [key] works.\nTotal Score: 3"


def test_tokens_that_nobody_counted_are_not_made_up() -> None:
    for usage in ({}, "many", {"prompt_tokens": -1, "completion_tokens": True}):
        with fake_judge(lambda *_, usage=usage: says("Total Score: 50", usage=usage)) as judge:  # type: ignore[misc]
            completion = ask(judge).completion
        assert (completion.prompt_tokens, completion.reply_tokens) == (None, None)


def test_a_message_without_text_is_an_empty_reply() -> None:
    body = b'{"choices": [{"message": {"role": "assistant", "content": null}}]}'
    with fake_judge(lambda *_: Act(body=body)) as judge:
        assert ask(judge).completion.text == ""


# --- waiting --------------------------------------------------------------------------------------------------------


def test_waits_double_with_jitter_up_to_the_longest() -> None:
    for failures, whole_s in [(1, 1.0), (2, 2.0), (3, 4.0), (5, 10.0), (200, 10.0)]:
        waits = {backoff_s(failures, first_s=1.0, most_s=10.0) for _ in range(50)}
        assert all(whole_s / 2 <= wait <= whole_s for wait in waits)
        assert len(waits) > 1


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({}, None),
    ],
)
def test_what_a_server_asks_to_wait(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, now_s=10.0) == wait_s


def test_one_thread_that_is_told_to_wait_holds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            now[0] += timeout or 0.0
            return self.is_set()

    waited: list[float] = []
    stop = Stop()
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    pause = Pause(stop)
    pause.hold(30.0)
    pause.hold(5.0)  # a shorter one does not let them go earlier
    assert pause.wait() and waited == [30.0]
    assert pause.wait() and waited == [30.0]
    pause.hold(5.0)
    stop.set()
    assert not pause.wait(1.0)


def test_a_stopped_run_does_not_wait_for_its_next_attempt() -> None:
    stop = threading.Event()

    def script(number: int, prompt: str) -> Act:
        stop.set()
        return Act(503)

    with fake_judge(script) as judge, pytest.raises(Stopped):
        Endpoint(judge.settings("first_wait_s=60"), KEY, stop).ask(MESSAGES)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        f"key_env={KEY}",
        f"api_key={KEY}",
        f"{KEY}",
        f"endpoint=https://user:{KEY}@host/v1",
        f"endpoint=https://host/v1?key={KEY}",
        f"endpoint={KEY}",
        f"endpoint=ftp://{KEY}",
        f"endpoint=https://host:{KEY}/v1",
        f"key_env=[{KEY}]",
    ],
)
def test_no_error_shows_what_may_be_a_key(wrong: str) -> None:
    with pytest.raises(ConfigError) as error:
        judge_settings(["endpoint=http://h/v1", "model=m", wrong])
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["model=m"], "endpoint is missing"),
        (["endpoint=http://h"], "model is missing"),
        (["endpoint=http://h", "model=m", "max_cost=3"], "max_cost needs price_per_million_input"),
        (["endpoint=http://h", "model=m", "concurrency=0"], "concurrency = 0"),
        (["endpoint=http://h", "model=m", "timeout_s=.inf"], "timeout_s"),
        (["endpoint=http://h", "model=m", "only=steering"], "only.0 = 'steering'"),
        (["endpoint=http://h", "model=m", "retry=3"], "unknown key retry; known here: endpoint, model"),
    ],
)
def test_wrong_settings_are_named(wrong: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        judge_settings(wrong)


def test_a_key_comes_from_the_environment_alone() -> None:
    settings = judge_settings(["endpoint=http://h/v1/", "model=m", "key_env=JUDGE_KEY", "only=planning"])
    assert (settings.host, settings.url, settings.only) == ("h", "http://h/v1", ["planning"])
    assert read_key(settings, {"JUDGE_KEY": f" {KEY}\n"}) == KEY
    for environment in ({}, {"JUDGE_KEY": " "}, {"JUDGE_KEY": "two words"}, {"JUDGE_KEY": "schlüssel"}):
        with pytest.raises(ConfigError, match="JUDGE_KEY") as error:
            read_key(settings, environment)
        assert not any(value.strip() and value in str(error.value) for value in environment.values())
    assert read_key(judge_settings(["endpoint=http://h", "model=m"]), {"OPENAI_API_KEY": KEY}) is None
