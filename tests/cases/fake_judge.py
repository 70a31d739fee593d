"""A chat-completions server on 127.0.0.1 that does what a test says, and an evaluation folder for it to judge."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from drivekd.evaluate.judge.settings import JudgeSettings, judge_settings

KEY = "sk-test-0123456789abcdef"


@dataclass(frozen=True)
class Act:
    """What the server does with one call. body: sent as it is; length: what Content-Length claims; None = the truth.
    wait_s: before the head; drip_s: between a byte and the next. drop: the connection is reset without a word."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    wait_s: float = 0.0
    drip_s: float = 0.0
    drop: bool = False


def says(text: str, *, finish_reason: str = "stop", usage: object = None, **fields: Any) -> Act:
    """A completion of one choice."""
    counts = {"prompt_tokens": 100, "completion_tokens": 20} if usage is None else usage
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    body = {"id": "x", "object": "chat.completion", "model": "judge-1-2026", "choices": [choice], "usage": counts}
    return Act(body=json.dumps(body).encode(), **fields)


@dataclass
class FakeJudge:
    """requests: bodies in the order in which they came; headers, their names in lower case, beside them."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0

    def prompts(self) -> list[str]:
        """What each call asked."""
        return [request["messages"][-1]["content"] for request in self.requests]

    def settings(self, *more: str) -> JudgeSettings:
        """Of a quick and patient caller."""
        quick = ["first_wait_s=0.01", "timeout_s=10", "model=judge-1", f"endpoint={self.url}"]
        return judge_settings([*quick, *more])


Script = Callable[[int, str], Act]


@contextmanager
def fake_judge(script: Script) -> Iterator[FakeJudge]:
    """A server for the block. script: number of the call from 1, and its prompt -> what to do."""
    lock, at_once = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal at_once
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                judge.requests.append(request)
                judge.headers.append({name.lower(): value for name, value in self.headers.items()})
                number, at_once = len(judge.requests), at_once + 1
                judge.most_at_once = max(judge.most_at_once, at_once)
            try:
                self._answer(script(number, request["messages"][-1]["content"]))
            except OSError:  # the caller has left
                self.close_connection = True
            finally:
                with lock:
                    at_once -= 1

        def _answer(self, act: Act) -> None:
            time.sleep(act.wait_s)
            if act.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(act.status)
            for name, value in {"Content-Type": "application/json", **act.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(act.body) if act.length is None else act.length))
            self.end_headers()
            for start in range(0, len(act.body), 1 if act.drip_s else len(act.body)):
                self.wfile.write(act.body[start : start + (1 if act.drip_s else len(act.body))])
                self.wfile.flush()
                time.sleep(act.drip_s)
            self.close_connection = act.length is not None

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge = FakeJudge(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def block(prompt: str, name: str) -> str:
    """The text of one block of a prompt, as a careful reader of its rules finds it."""
    found = re.search(rf"^BEGIN {name} ([0-9a-f]+)\n(.*?)\nEND {name} \1$", prompt, re.DOTALL | re.MULTILINE)
    assert found is not None, prompt
    return found[2]


def prediction(number: int, **fields: Any) -> dict[str, Any]:
    """A line of predictions.jsonl, a scene for every two."""
    base = {
        "index": number,
        "source": f"test.json, record {number}",
        "id": f"id-{number}",
        "capability": "planning",
        "topic": "action",
        "form": "open",
        "question": f"What should the ego vehicle do at junction {number}?",
        "answer": "It should stop.",
        "scene": f"scene-{number // 2}",
        "frame": f"frame-{number}",
        "cameras": ["CAM_FRONT"],
        "images": [],
        "tag": [],
        "hop": None,
        "setting": "clean",
        "severity": None,
        "prediction": f"It stops {number}.",
        "finish_reason": "stop",
        "tokens": 4,
        "mean_logprob": -0.2,
    }
    return {**base, **fields}


def evaluation_folder(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """An evaluation folder with these predictions."""
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
