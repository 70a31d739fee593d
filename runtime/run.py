"""What `drivekd run` does, behind the command line: frames in, answers out, one frame after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .answers.answer import Answer
from .load import load_bundle
from .pictures.frames import Frame, read_frames
from .pictures.overlay import draw_answers, write_overlay
from .session.session import Session

OnTexts = Callable[[Mapping[str, str]], None]  # capability -> its text so far; none = the frame is done


@dataclass(frozen=True)
class FrameReport:
    """One frame's answers. timings_ms: as Session has them. note: what whoever reads the answers must know. overlay: the picture
    that was written."""

    frame: Frame
    answers: dict[str, Answer]
    timings_ms: dict[str, float]
    bundle: str
    note: str
    overlay: Path | None

    def to_json(self) -> dict[str, Any]:
        """The object that `run --json` prints."""
        frame = self.frame
        return {
            "frame": {"name": frame.name, "source": frame.source, "time_s": frame.time_s, "cameras": list(frame.images)},
            "answers": {name: _without(asdict(answer), "capability") for name, answer in self.answers.items()},
            "timings_ms": self.timings_ms,
            "bundle": self.bundle,
            **({"note": self.note} if self.note else {}),
            **({"overlay": str(self.overlay)} if self.overlay else {}),
        }

    def lines(self) -> list[str]:
        """What `run` prints: the answers, behind a heading when there are many frames; what ended an answer early beside it."""
        heading = [f"{self.frame.name}  {self.frame.source}"] if self.frame.one_of_many else []
        return heading + [f"{name}{_ending(answer)}: {answer.text}" for name, answer in self.answers.items()]


def run_command(
    bundle: Path,
    words: Sequence[str],
    *,
    question: str | None = None,
    structured: bool = False,
    deadline_ms: float | None = None,
    every: int = 1,
    overlay: Path | None = None,
    on_texts: OnTexts | None = None,
    public_key: Path | None = None,
) -> Iterator[FrameReport]:
    """Answer about every frame that the words name (read_frames says how), one after another.

    question: asked instead of the bundle's. structured: answers under the bundle's schemas. deadline_ms: of each frame, from when
    it has been read. every: of a video's or a folder's pictures take 0, every, 2 * every, ... overlay: a folder for pictures with
    the answers drawn on them, NAME-overlay.jpg. on_texts: told of every growing text. public_key: PEM of who must have signed it.
    Raises UsageError, DataError, BundleError, RunnerError, at the frame where it happens.
    """
    with load_bundle(bundle, public_key=public_key) as session:
        for frame in read_frames(words, session.cameras, every=every):
            answers = session.answer(
                frame.images,
                question=question,
                structured=structured,
                deadline_ms=deadline_ms,
                on_text=None if on_texts is None else _growing(on_texts),
            )
            path = None if overlay is None else _draw(overlay, session, frame, answers)
            if on_texts is not None:
                on_texts({})
            yield FrameReport(frame, answers, dict(session.timings_ms), session.bundle_digest, session.manifest.note, path)


def _growing(on_texts: OnTexts) -> Callable[[str, str], None]:
    texts: dict[str, str] = {}

    def grow(capability: str, piece: str) -> None:
        texts[capability] = texts.get(capability, "") + piece
        on_texts(texts)

    return grow


def _draw(folder: Path, session: Session, frame: Frame, answers: Mapping[str, Answer]) -> Path:
    """NAME-overlay.jpg: an input NAME.jpg may lie in the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{frame.name}-overlay.jpg"
    backends = ", ".join(dict.fromkeys(answer.backend for answer in answers.values()))
    caption = f"{frame.source} | {backends}, {session.timings_ms['total']:,.0f} ms | {session.bundle_digest[:19]}"
    write_overlay(path, draw_answers(frame.images, answers, caption=caption, coordinates=session.manifest.coordinates))
    return path


def _ending(answer: Answer) -> str:
    if answer.finish_reason != "stop":
        return f" ({answer.finish_reason})"
    return "" if answer.valid else " (says nothing)"


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
