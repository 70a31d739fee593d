"""A bundle that answers many questions through the runtime, as the car would: one at a time, the frame's K/V kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from drivekd.answered import Given
from drivekd.camera_order import camera_names, named_sample
from drivekd.errors import DataError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime import Answer, Ask, Session, load_bundle, read_bundle
from drivekd.sample import CAMERAS, Sample

from .answerer import AnswererSettings, OnAnswer
from .budgets import Budgets, json_budgets
from .pictures import CLEAN, PictureReader, Pictures

OPENING_TOKENS = 32  # with which JSON begins whatever it says: {"objects":[


class BundleAnswerer:
    """Greedy answers of a bundle. Of the settings: backend and threads as load_bundle takes them, max_new_tokens, structured."""

    def __init__(self, bundle: Path, settings: AnswererSettings) -> None:
        opened = read_bundle(bundle, defer=True)
        self.name, self.digest = str(bundle), opened.digest
        budgets = opened.manifest.generation.max_new_tokens
        self._instruction = opened.manifest.structured_instruction if settings.structured else ""
        if settings.structured:
            budgets = json_budgets(budgets, self._instruction)
        self.budgets = Budgets.chosen(settings.max_new_tokens, budgets, "the bundle's manifest")
        self._cameras = opened.manifest.cameras
        self._bundle, self._settings = bundle, settings

    def answers(self, samples: Sequence[Sample], *, pictures: Pictures = CLEAN, on_answer: OnAnswer | None = None) -> list[Given]:
        """As Answerer says."""
        found: dict[int, Given] = {}
        samples = [with_cameras(sample, self._cameras) for sample in samples]
        frames = _frames(samples, pictures)
        with (
            load_bundle(
                self._bundle, backend=self._settings.backend, threads=self._settings.threads, expect_digest=self.digest
            ) as session,
            PictureReader(pictures, lambda image: image) as reader,
        ):
            for places, following in zip(frames, [*frames[1:], []], strict=True):
                frame = _taken(reader, samples[places[0]], [samples[i] for i in following[:1]], pictures)
                for i in places:
                    found[i] = self._answered(session, frame, samples[i])
                    if on_answer is not None:
                        on_answer(i, found[i])
        return [found[i] for i in range(len(samples))]

    def _answered(self, session: Session, frame: dict[str, RGBImage], sample: Sample) -> Given:
        try:
            structured = self._settings.structured
            prompts = session.model.prompts
            num_prompt = len(prompts.prefix(len(frame))) + len(prompts.suffix(sample.question + self._instruction))
            room = session.manifest.model.max_positions - num_prompt - structured * OPENING_TOKENS
            ask = Ask(
                capabilities=[sample.capability],
                question=sample.question,
                max_new_tokens=max(1, min(self.budgets.of(sample.capability), room)),
                structured=structured,
            )
            answer = session.answer_ask(frame, ask)[sample.capability]
        except UsageError as error:
            raise DataError(f"{sample.source}: {error}") from error
        return given(answer)


def _frames(samples: Sequence[Sample], pictures: Pictures) -> list[list[int]]:
    """Places of the questions about the same pictures, one behind the other; the session keeps what it has read of them."""
    order = sorted(range(len(samples)), key=lambda i: (samples[i].scene, samples[i].frame, samples[i].images))
    return [list(places) for _, places in groupby(order, key=lambda i: (samples[i].images, pictures.keys(samples[i])))]


def _taken(
    reader: PictureReader[RGBImage], sample: Sample, following: Sequence[Sample], pictures: Pictures
) -> dict[str, RGBImage]:
    """A frame's pictures by camera, while the following one's are being read."""
    for one in (sample, *following):
        reader.begin(one)
    keys = pictures.keys(sample)
    images = {key: reader.take(key) for key in dict.fromkeys(keys)}
    return {name: images[key] for name, key in zip(sample.cameras, keys, strict=True)}


def given(answer: Answer) -> Given:
    """A runtime's answer that no deadline has cut. mean_logprob: None where no token was chosen."""
    assert answer.finish_reason in ("stop", "length"), answer.finish_reason
    reason, chosen = answer.finish_reason, answer.mean_logprob if answer.tokens else None
    return Given(answer.text, "stop" if reason == "stop" else "length", answer.tokens, chosen)


def with_cameras(sample: Sample, cameras: Sequence[str]) -> Sample:
    """The sample with its cameras named, in the order of the bundle's. A bundle without cameras knows none: then the record's own
    names, else those of one camera or of six.

    Raises DataError when nothing tells, or a camera is none of the bundle's.
    """
    if cameras:
        return named_sample(sample, cameras)
    known = CAMERAS if len(sample.images) == len(CAMERAS) else CAMERAS[:1]
    return replace(sample, cameras=names) if (names := camera_names(sample)) else named_sample(sample, known)
