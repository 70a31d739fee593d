"""One call to a judge: any OpenAI-compatible endpoint through the `openai` client, with our own attempts, waits and deadline.

The client's own retries are off: they know no common pause and no budget, and a server that sends a byte a minute holds them for
ever. Passing faults (408, 409, 425, 429, 5xx, time-outs, connections, bodies that are no completion) are tried again; a prompt
that is refused (400, 413, 422) is that question's failure; whatever would meet every call (401, 402, 403, 404, a redirect, no
credit) ends the run. No text of a server is shown or kept before the key has been taken out of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from drivekd.errors import JudgeError, UsageError
from drivekd.evaluate.judge.completion import Completion, NotACompletion, completion_from_body
from drivekd.evaluate.judge.prompts import Messages
from drivekd.evaluate.judge.settings import JudgeSettings
from drivekd.evaluate.judge.waiting import Pause, backoff_s, retry_after_s

if TYPE_CHECKING:
    import openai

TEMPERATURE = 0.0
MAX_BODY_BYTES = 4_000_000  # a reply is a few kB; what goes on for ever is none
_PASSING = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({400, 413, 422})
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "credit_balance")  # 429 that no wait mends
_ADVICE: Mapping[int, str] = {
    401: "the key was not accepted; check key_env",
    402: "it wants payment",
    403: "the key may not use this model; check key_env and model",
    404: "there is no such address or model; check endpoint (up to /chat/completions, often .../v1) and model",
}


class Unanswered(Exception):
    """This question has no reply, others may have one. maybe_billed: attempts that the endpoint may have worked on."""

    def __init__(self, reason: str, attempts: int, maybe_billed: int) -> None:
        super().__init__(reason)
        self.reason, self.attempts, self.maybe_billed = reason, attempts, maybe_billed


class Stopped(Exception):
    """The run ended while this call waited for its next attempt."""

    def __init__(self, attempts: int, maybe_billed: int) -> None:
        super().__init__("stopped")
        self.attempts, self.maybe_billed = attempts, maybe_billed


class _Passing(Exception):
    def __init__(self, reason: str, *, wait_s: float | None = None, maybe_billed: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.maybe_billed = wait_s, maybe_billed


class _Refused(Exception):
    pass


@dataclass(frozen=True)
class Reply:
    """A completion, after so many attempts; the last of them took `seconds`."""

    completion: Completion
    attempts: int
    maybe_billed: int
    seconds: float


class Judge(Protocol):
    """Who answers a prompt."""

    def ask(self, messages: Messages) -> Reply:
        """Raises Unanswered, Stopped, or JudgeError where no call can succeed."""
        ...


class Endpoint:
    """An endpoint that several threads may ask at once. stop: ends waits between attempts."""

    def __init__(self, settings: JudgeSettings, key: str | None, stop: threading.Event) -> None:
        self._settings, self._key = settings, key
        self._pause = Pause(stop)
        self._client = _client(settings, key)

    def ask(self, messages: Messages) -> Reply:
        """See Judge."""
        maybe_billed = 0
        for attempt in range(1, self._settings.retries + 2):
            if not self._pause.wait():
                raise Stopped(attempt - 1, maybe_billed)
            started_s = time.monotonic()
            try:
                completion = self._completion(messages)
                return Reply(completion, attempt, maybe_billed, time.monotonic() - started_s)
            except _Refused as error:
                raise Unanswered(str(error), attempt, maybe_billed) from error
            except _Passing as error:
                maybe_billed += error.maybe_billed
                reason = str(error)
                if attempt <= self._settings.retries and not self._wait(attempt, error.wait_s):
                    raise Stopped(attempt, maybe_billed) from error
        raise Unanswered(reason, attempt, maybe_billed)

    def _wait(self, failures: int, asked_s: float | None) -> bool:
        """Wait before the next attempt; where the server says how long, every thread does. False when stopped."""
        wait_s = backoff_s(failures, first_s=self._settings.first_wait_s, most_s=self._settings.max_wait_s)
        if asked_s is None:
            return self._pause.wait(wait_s)
        if asked_s > self._settings.max_wait_s:
            raise JudgeError(
                f"{self._settings.host} asks to wait {asked_s:,.0f} s, longer than max_wait_s = {self._settings.max_wait_s:g}; "
                "what was judged is kept: run again later"
            )
        self._pause.hold(asked_s)
        return self._pause.wait(min(wait_s, 1.0))  # the jitter; the pause itself is every thread's

    def _completion(self, messages: Messages) -> Completion:
        try:
            completion = completion_from_body(self._body(messages))
        except NotACompletion as error:
            raise _Passing(f"the reply was {error}", maybe_billed=True) from error
        return Completion(
            text=self._without_key(completion.text),
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            reply_tokens=completion.reply_tokens,
            served_by=self._without_key(completion.served_by),
        )

    def _body(self, messages: Messages) -> bytes:
        import httpx2
        import openai

        deadline_s = time.monotonic() + self._settings.timeout_s
        try:
            create: Any = self._client.chat.completions.with_streaming_response.create  # streams bytes, not tokens
            headers = {} if self._key else {"Authorization": openai.Omit()}  # without a key nothing is sent in its place
            with create(**request_for(messages, self._settings), extra_headers=headers) as response:
                return _read(response.iter_bytes(), deadline_s)
        except openai.APIStatusError as error:
            raise self._status_fault(error) from error
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise _Passing(f"no reply within timeout_s = {self._settings.timeout_s:g}", maybe_billed=True) from error
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            refused = isinstance(cause, httpx2.ConnectError)
            reason = f"no connection to {self._settings.host}" if refused else "the connection broke before the reply was whole"
            raise _Passing(f"{reason} ({type(cause or error).__name__})", maybe_billed=not refused) from error

    def _status_fault(self, error: openai.APIStatusError) -> Exception:
        status, host = error.status_code, self._settings.host
        said = (
            "" if status in (401, 403) else self._without_key(f"{error.message} {error.body or ''}")[:300]
        )  # those like to quote the key
        if status == 429 and any(word in said for word in _NO_CREDIT):
            return JudgeError(f"{host}: no credit left (429: {said}); what was judged is kept")
        if status in _PASSING or status >= 500:
            return _Passing(f"status {status}", wait_s=retry_after_s(error.response.headers))
        if status in _REFUSED:
            return _Refused(f"refused with status {status}: {said}")
        if 300 <= status < 400:
            return JudgeError(
                f"{host} redirects to {urlsplit(error.response.headers.get('location', '')).netloc or 'elsewhere'}; records are "
                "sent nowhere but to the endpoint that was named: set endpoint to the address that is meant"
            )
        advice = _ADVICE.get(status, said or "the call was refused")
        return JudgeError(f"{host}: status {status} for model {self._settings.model}: {advice}")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def request_for(messages: Messages, settings: JudgeSettings) -> dict[str, Any]:
    """The fields of one call."""
    return {
        "model": settings.model,
        "messages": messages,
        "temperature": TEMPERATURE,
        "seed": settings.seed,
        settings.limit_field: settings.max_reply_tokens,
    }


def _read(chunks: Iterable[bytes], deadline_s: float) -> bytes:
    """The whole body, unless its server is too slow or does not end."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if time.monotonic() > deadline_s:
            raise _Passing("the reply did not end within timeout_s", maybe_billed=True)
        if len(body) > MAX_BODY_BYTES:
            raise _Passing(f"the reply is longer than {MAX_BODY_BYTES:,} bytes", maybe_billed=True)
    return bytes(body)


def _client(settings: JudgeSettings, key: str | None) -> openai.OpenAI:
    """Nothing of the environment goes to a foreign endpoint: neither another service's key nor its organization."""
    try:
        import openai
    except ImportError as error:
        raise UsageError("a judge is asked through the package openai; install drivekd[eval]") from error
    ours = (settings.host.split(":")[0] + ".").endswith("openai.com.")
    headers: dict[str, Any] = {} if ours else {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
    return openai.OpenAI(
        api_key=key or "none",
        base_url=settings.url,
        timeout=settings.timeout_s,
        max_retries=0,
        default_headers=headers,
        http_client=openai.DefaultHttpxClient(follow_redirects=False, timeout=settings.timeout_s),
    )
