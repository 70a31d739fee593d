"""Everything of the runtime once, on any bundle and in any environment: for the car's own Python, where there is no pytest.

    python benchmarks/runtime/smoke.py BUNDLE    # by its path: the installed drivekd is asked, not the folder of that name

Both dialects give the same answers, structured ones fit their schemas, a deadline of nothing is closed, a session in a child
process says what the one in this process says, and no torch, transformers or onnx was imported. Prints versions and one line a
check; ends with status 1 at the first that fails.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from drivekd.images import RGBImage
from drivekd.runtime import Answer, load_bundle
from drivekd.runtime.answers.schemas import Schema, valid_answer
from drivekd.runtime.parity.golden import golden_images
from drivekd.runtime.resilience.worker import WorkerSession

PACKAGES = ("numpy", "onnxruntime", "llguidance", "tokenizers", "safetensors", "pillow", "pydantic")
TRAINING_ONLY = ("torch", "transformers", "onnx")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle
    print(f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES), sep=", ")
    answers = {}
    for dialect in ("gqa", "concat"):
        with load_bundle(bundle, threads=1, dialect=dialect) as session:
            images = dict(
                zip(session.cameras or ("a", "b"), golden_images(session.manifest.images.tile_px).values(), strict=False)
            )
            answers[dialect] = session.answer(images)
            structured = session.answer(images, structured=True)
            late = session.answer(images, structured=True, deadline_ms=0.0)
            _says(f"{dialect}: {sum(answer.tokens for answer in structured.values())} tokens of structured answers", True)
        _check_schemas(session.schemas, structured)
        _check_schemas(session.schemas, late)
        _says("a deadline of 0 ms closes every answer", all(not one.complete for one in late.values()))
    _says("both dialects say the same", _texts(answers["gqa"]) == _texts(answers["concat"]))
    _check_worker(bundle, images, structured)
    _says("no torch, transformers or onnx was imported", not set(TRAINING_ONLY) & set(sys.modules))
    return 0


def _check_schemas(schemas: Mapping[str, Schema], answers: Mapping[str, Answer]) -> None:
    for name, answer in answers.items():
        fault = valid_answer(schemas[name], answer.structured)
        _says(f"{name} fits its schema ({answer.finish_reason}): {answer.text:.80}", fault is None)


def _check_worker(bundle: Path, images: Mapping[str, RGBImage], structured: Mapping[str, Answer]) -> None:
    with WorkerSession(bundle, threads=1, dialect="concat") as worker:
        found = worker.answer(images, structured=True)
    _says("a session in a child process says the same", _texts(found) == _texts(structured))


def _texts(answers: Mapping[str, Answer]) -> dict[str, str]:
    return {name: answer.text for name, answer in answers.items()}


def _says(what: str, holds: bool) -> None:
    print("ok  " if holds else "FAIL", what)
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(main())
