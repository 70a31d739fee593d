"""What `drivekd run` and `bench` do, behind the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drivekd.errors import UsageError
from drivekd.images import RGBImage, load_image

from .bench import BenchReport
from .session import Session, load_bundle

OnTexts = Callable[[Mapping[str, str]], None]  # capability -> its text so far


def run_command(
    bundle: Path,
    images: Sequence[str],
    *,
    question: str | None = None,
    on_texts: OnTexts | None = None,
    public_key: Path | None = None,
) -> dict[str, Any]:
    """Answer about one frame; returns the object that `run --json` prints.

    images: files in camera order, or CAMERA=FILE. on_texts: told of every growing text. public_key: PEM of who must have signed.
    Raises UsageError, DataError, BundleError.
    """
    with load_bundle(bundle, public_key=public_key) as session:
        frame = _frame(session, images)
        texts: dict[str, str] = {}

        def grow(capability: str, piece: str) -> None:
            texts[capability] = texts.get(capability, "") + piece
            if on_texts is not None:
                on_texts(texts)

        answers = session.answer(frame, question=question, on_text=grow)
        result = {
            "answers": {
                name: {
                    "text": answer.text,
                    "fields": answer.fields,
                    "valid": answer.valid,
                    "finish_reason": answer.finish_reason,
                    "tokens": answer.tokens,
                }
                for name, answer in answers.items()
            },
            "timings_ms": session.timings_ms,
            "bundle": session.bundle_digest,
        }
        return result | ({"note": session.manifest.note} if session.manifest.note else {})


def _frame(session: Session, images: Sequence[str]) -> dict[str, RGBImage]:
    """Images by camera name; unnamed files take the bundle's cameras in order."""
    unnamed = iter(session.cameras or tuple(f"camera_{index}" for index in range(len(images))))
    frame: dict[str, RGBImage] = {}
    for word in images:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = next(unnamed, ""), word
        if not name or name in frame:
            cameras = ", ".join(session.cameras) or "any camera"
            raise UsageError(f"{word}: {len(images)} images for {cameras}; name each as CAMERA=FILE")
        frame[name] = load_image(Path(path))
    return frame


def bench_table(report: BenchReport) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows of a bench."""
    title = f"{report.frames} frames of {report.images} image(s) after {report.warmup} warm-up, {report.backend}, {report.device}"
    rows = [list(row) for row in report.rows()]
    rows.append(["decode, three branches", f"{report.decode_tokens_per_s:.0f} tokens/s", "", ""])
    rows.append(["peak memory", f"{report.peak_rss_mb:.0f} MB", "", ""])
    return title, ["stage", "p50 ms", "p95 ms", "p99 ms"], rows
