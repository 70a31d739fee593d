"""Engines that take part in `triad.py`, and the frames that all of them are asked."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runtime.engine_process import EngineEndedError, EngineProcess

WORKER = "benchmarks.runtime.triad_worker"
WARM_UP = 4  # tokens, behind one image
PEER_MODES = {"separate": "three runs", "kept": "prefix kept", "batch": "batch of three"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """An engine in one of its modes."""

    label: str
    mode: str
    process: EngineProcess


@dataclass(frozen=True)
class Start:
    """How an engine's process is started. folder: its model. python: the interpreter of its environment."""

    engine: str
    folder: Path
    python: str | Path


def open_contestants(stack: ExitStack, arguments: argparse.Namespace) -> tuple[list[Contestant], Prompts]:
    """Our session in both modes first, then every peer that runs, each in every mode that it can do; all are warm."""
    ours = stack.enter_context(start(Start("session", arguments.bundle, sys.executable), arguments))
    prompts = Prompts(ours)
    contestants = [Contestant("drivekd", "free", ours), Contestant("drivekd, structured", "structured", ours)]
    for peer in _peers(arguments):
        if modes := [mode for mode in arguments.peer_modes if _runs(peer, mode, prompts, arguments)]:
            process = stack.enter_context(start(peer, arguments))
            contestants += [Contestant(f"{peer.engine}, {PEER_MODES[mode]}", mode, process) for mode in modes]
    for number, contestant in enumerate(contestants):  # pages, pools, packed weights, grammars
        contestant.process.ask(frame=contestant.mode, **prompts.frame(1, WARM_UP, seed=number))
    return contestants, prompts


def start(asked: Start, arguments: argparse.Namespace) -> EngineProcess:
    """A context manager. Raises OSError when there is no such interpreter."""
    command = [asked.python, "-m", WORKER, asked.engine, asked.folder, "--threads", str(arguments.threads)]
    return EngineProcess(asked.engine, command, arguments.threads, huge_pages=arguments.huge_pages)


def _peers(arguments: argparse.Namespace) -> list[Start]:
    found = []
    if arguments.peer_python is not None:
        found.append(Start("genai", _genai_model(arguments), arguments.peer_python))
    if arguments.openvino_python is not None:
        found.append(Start("openvino", arguments.openvino_model, arguments.openvino_python))
    return found


def _genai_model(arguments: argparse.Namespace) -> Path:
    """Built from the checkpoint unless it is there already. What cannot be built is left out when it is tried."""
    built: Path = arguments.work / "peer" / "genai"
    if not (built / "genai_config.json").exists() and arguments.checkpoint is not None:
        from benchmarks.runtime.decode_peer import make_peer  # imports torch

        try:
            make_peer(arguments.checkpoint, built.parent, arguments.peer_python)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{arguments.peer_python} built no peer: {error}", file=sys.stderr)
    return built


def _runs(peer: Start, mode: str, prompts: Prompts, arguments: argparse.Namespace) -> bool:
    """Tried on a short frame, in a process that may die of it."""
    try:
        with start(peer, arguments) as process:
            process.ask(frame=mode, **prompts.frame(1, WARM_UP, seed=0))
            return True
    except (EngineEndedError, OSError) as error:
        print(f"left out: {peer.engine}, {PEER_MODES[mode]}: {error}", file=sys.stderr)
        return False


class Prompts:
    """Frames as every engine is asked them: as the session's tokenizer and chat format make them."""

    def __init__(self, session: EngineProcess) -> None:
        self._session = session
        self._described: dict[int, Row] = {}

    def frame(self, num_images: int, tokens: int, *, seed: int) -> Row:
        """The frame that `seed` means: random words, 300 to 600, where images are; every tokenizer of ours has those."""
        about = self._about(num_images)
        image = about["image_token_id"]
        words = np.random.default_rng([num_images, seed]).integers(300, 600, about["prefix"].count(image))
        rest = iter(words.tolist())
        prefix = [next(rest) if token == image else token for token in about["prefix"]]
        content = [part.tolist() for part in np.split(words, num_images)]
        return {"prefix": prefix, "content": content, "questions": about["questions"], "tokens": tokens}

    def _about(self, num_images: int) -> Row:
        if num_images not in self._described:
            self._described[num_images] = self._session.ask(describe=num_images)
        return self._described[num_images]
