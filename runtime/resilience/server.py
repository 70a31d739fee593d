"""What runs in a worker's child process, and the messages between it and its parent.

A fresh interpreter, not a fork (threads of an engine do not survive one) and not `multiprocessing`'s spawn, which would import
the parent's main module again, and with it perhaps torch. The child inherits three descriptors: the connection, the memory for
images and a lifeline that tells it, even while an engine is busy, that its parent is gone.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from drivekd.contract import Variable
from drivekd.errors import DrivekdError
from drivekd.runtime.answers.answer import Answer
from drivekd.runtime.answers.ask import Ask
from drivekd.runtime.bundle.manifest import Manifest
from drivekd.runtime.meters.health import Memory, memory_mb
from drivekd.runtime.session.session import Session

from .shared_images import PlacedImage, SharedImageReader

OUT_OF_MEMORY = errno.ENOMEM  # the child's exit status after a MemoryError

OpenSession = Callable[..., Session]


@dataclass(frozen=True)
class Start:
    """The parent's first message. open_session(path, **options) is called after delay_s seconds."""

    open_session: OpenSession
    path: Path
    options: dict[str, Any]
    delay_s: float


@dataclass(frozen=True)
class Ready:
    """The child's first message: what its session is."""

    capabilities: tuple[str, ...]
    cameras: tuple[str, ...]
    variables: dict[str, Variable]
    bundle_digest: str
    backend: str
    dialect: str
    manifest: Manifest
    memory: Memory


@dataclass(frozen=True)
class Request:
    """One frame to answer. stream: send Text as it grows. The ask's own on_text and cancelled stay with the parent."""

    frame: int
    images: list[PlacedImage]
    ask: Ask
    stream: bool


@dataclass(frozen=True)
class Text:
    """A piece of a capability's text."""

    frame: int
    capability: str
    piece: str


@dataclass(frozen=True)
class Done:
    """A frame's answers."""

    frame: int
    answers: dict[str, Answer]
    timings_ms: dict[str, float]
    counts: dict[str, int]
    memory: Memory


@dataclass(frozen=True)
class Failed:
    """A frame, or the start (frame 0), ended with an error. The child of a failed frame lives on."""

    frame: int
    error: DrivekdError
    memory: Memory = field(default_factory=memory_mb)


Reply = Ready | Text | Done | Failed


def main(connection: int, images: int, lifeline: int) -> None:
    """Serve until the parent closes the connection. Arguments: inherited descriptors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says when to end
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    try:
        _serve(Connection(connection), SharedImageReader(images))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone or has closed
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # at once: tidying up takes memory, too


def _end_with_parent(lifeline: int) -> None:
    """The lifeline's other end is the parent's: reading it returns when that process ends, however it does."""
    os.read(lifeline, 1)
    os._exit(0)


def _serve(connection: Connection, images: SharedImageReader) -> None:
    start = connection.recv()
    assert isinstance(start, Start)
    time.sleep(start.delay_s)
    try:
        session = start.open_session(start.path, **start.options)
        _warm_up(session)
    except DrivekdError as error:
        connection.send(Failed(0, error))
        return
    with session:
        connection.send(_ready(session))
        while True:
            connection.send(_reply(session, connection, images, connection.recv()))


def _warm_up(session: Session) -> None:
    """What is allocated and compiled at first use would be taken for a hang. Not by `answer`, whose images a camera may keep."""
    session.warm_up()
    model = session.model
    width, height = model.manifest.images.tiles_px
    questions = list(model.questions().values())
    model.forced_logits([np.zeros((height, width, 3), np.uint8)], questions, np.zeros((2, len(questions)), np.int64))


def _reply(session: Session, connection: Connection, images: SharedImageReader, request: Request) -> Done | Failed:
    def send_text(capability: str, piece: str) -> None:
        connection.send(Text(request.frame, capability, piece))

    ask = replace(
        request.ask,
        on_text=send_text if request.stream else None,
        cancelled=lambda: images.cancelled(request.frame),
    )
    try:
        answers = session.answer_ask(images.read(request.images), ask)
    except DrivekdError as error:
        return Failed(request.frame, error)
    return Done(request.frame, answers, session.timings_ms, session.counts, memory_mb())


def _ready(session: Session) -> Ready:
    return Ready(
        capabilities=session.capabilities,
        cameras=session.cameras,
        variables=session.variables,
        bundle_digest=session.bundle_digest,
        backend=session.backend,
        dialect=session.dialect,
        manifest=session.manifest,
        memory=memory_mb(),
    )
