"""One engine of `triad.py` in a process of its own: it answers JSON lines on stdin with JSON lines on stdout.

    {"describe": N}                                  session alone: ids of the prompt for N images
    {"frame": MODE, "prefix": [ids], "content": [[ids]], "questions": [[ids]], "tokens": n}
                                                     a new frame: read it, answer every question with n tokens
    {"answer": MODE, "question": i, "tokens": n}     one more answer about the last frame, whose prefix is kept
    {"typical": true or false}                       session alone: written answers, forced tokens skipped or not
    {"save": FILE}                                   .npy, float32 [questions, V]: logits behind the last frame's questions

`prefix` is text all through. `content` is the same frame as a session sees it: what stands in the prefix for each image. A reply
has the seconds of the call, those of its stages, `cpu_s` of all threads and resident memory; `decode_s` took `steps` engine calls
and gave `decoded` tokens of each answer behind the first. Runs in the environment of the engine that it is asked for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import memory_mb
from benchmarks.runtime.triad_frame import Found, Frame
from benchmarks.runtime.worker import work

# module and class of each; a module is imported in its own environment only
ENGINES = {
    "bound": ("benchmarks.runtime.triad_bound", "BoundFrames"),
    "session": ("benchmarks.runtime.triad_session", "SessionFrames"),
    "genai": ("benchmarks.runtime.triad_genai", "GenaiFrames"),
    "openvino": ("benchmarks.runtime.triad_openvino", "OpenVinoFrames"),
}


def load(engine: str, folder: Path, threads: int) -> Any:
    module, name = ENGINES[engine]
    return getattr(import_module(module), name)(folder, threads)


def serve(engine: Any) -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "save" in asked:
            np.save(asked["save"], engine.logits())
            print("{}", flush=True)
        elif "describe" in asked:
            print(json.dumps(engine.describe(asked["describe"])), flush=True)
        elif "typical" in asked:
            reply(lambda skipping=asked["typical"]: engine.typical(skipping))
        elif "frame" in asked:
            mode = asked.pop("frame")
            reply(lambda frame=Frame(**asked), mode=mode: engine.frame(frame, mode))
        else:
            reply(lambda asked=asked: engine.answer(asked["question"], asked["tokens"], asked["answer"]))


def reply(call: Callable[[], Found]) -> None:
    """Print what the call found and took."""
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    found = call()
    taken = {"seconds": time.perf_counter() - started_s, "cpu_s": time.process_time() - cpu_started_s}
    print(json.dumps({**taken, **found, **memory_mb()}), flush=True)


def main() -> None:
    work(__doc__, ENGINES, load, serve)


if __name__ == "__main__":
    main()
