"""A bundle that answers many questions through the runtime, as the car would: one at a time, the frame's K/V kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from drivekd.answered import Given
from drivekd.errors import DataError, UsageError
from drivekd.images import RGBImage
from drivekd.runtime import Answer, Manifest, Session, load_bundle, read_bundle
from drivekd.sample import CAMERAS, Sample

from .answerer import AnswererSettings, OnAnswer
from .budgets import Budgets
from .pictures import CLEAN, PictureReader, Pictures

_CAMERA = re.compile("|".join(rf"{camera}(?![A-Z_]*[A-Z])" for camera in CAMERAS))


class BundleAnswerer:
    """Greedy answers of a bundle. Of the settings: backend and threads as load_bundle takes them, max_new_tokens, structured."""

    def __init__(self, bundle: Path, settings: AnswererSettings) -> None:
        opened = read_bundle(bundle, defer=True)
        self.name, self.digest = str(bundle), opened.digest
        self.budgets = Budgets.chosen(settings.max_new_tokens, _budgets(opened.manifest), "the bundle's manifest")
        self._bundle, self._settings = bundle, settings

    def answers(self, samples: Sequence[Sample], *, pictures: Pictures = CLEAN, on_answer: OnAnswer | None = None) -> list[Given]:
        """As Answerer says."""
        found: dict[int, Given] = {}
        frames = _frames(samples, pictures)
        with (
            load_bundle(
                self._bundle, backend=self._settings.backend, threads=self._settings.threads, expect_digest=self.digest
            ) as session,
            PictureReader(pictures, lambda image: image) as reader,
        ):
            for places, following in zip(frames, [*frames[1:], []], strict=True):
                frame = _taken(reader, samples[places[0]], [samples[i] for i in following[:1]], pictures, session.cameras)
                for i in places:
                    found[i] = self._answered(session, frame, samples[i])
                    if on_answer is not None:
                        on_answer(i, found[i])
        return [found[i] for i in range(len(samples))]

    def _answered(self, session: Session, frame: dict[str, RGBImage], sample: Sample) -> Given:
        try:
            prompts = session.model.prompts
            num_prompt = len(prompts.prefix(len(frame))) + len(prompts.suffix(sample.question))
            room = session.manifest.model.max_positions - num_prompt
            budget = max(1, min(self.budgets.of(sample.capability), room))
            answer = session.answer_question(frame, sample.question, max_new_tokens=budget)
        except UsageError as error:
            raise DataError(f"{sample.source}: {error}") from error
        return given(answer)


def _frames(samples: Sequence[Sample], pictures: Pictures) -> list[list[int]]:
    """Places of the questions about the same pictures, one behind the other; the session keeps what it has read of them."""
    order = sorted(range(len(samples)), key=lambda i: (samples[i].scene, samples[i].frame, samples[i].images))
    return [list(places) for _, places in groupby(order, key=lambda i: (samples[i].images, pictures.keys(samples[i])))]


def _taken(
    reader: PictureReader[RGBImage], sample: Sample, following: Sequence[Sample], pictures: Pictures, cameras: Sequence[str]
) -> dict[str, RGBImage]:
    """A frame's pictures by camera, while the following one's are being read."""
    for one in (sample, *following):
        reader.begin(one)
    keys = pictures.keys(sample)
    images = {key: reader.take(key) for key in dict.fromkeys(keys)}
    return {name: images[key] for name, key in zip(camera_names(sample, cameras), keys, strict=True)}


def given(answer: Answer) -> Given:
    """A runtime's answer that no deadline has cut. mean_logprob: None where no token was chosen."""
    assert answer.finish_reason in ("stop", "length"), answer.finish_reason
    reason, chosen = answer.finish_reason, answer.mean_logprob if answer.tokens else None
    return Given(answer.text, "stop" if reason == "stop" else "length", answer.tokens, chosen)


def _budgets(manifest: Manifest) -> dict[str, int]:
    return dict.fromkeys(manifest.prompts, manifest.generation.max_new_tokens)


def camera_names(sample: Sample, cameras: Sequence[str]) -> tuple[str, ...]:
    """Which camera took each image: named in its path (.../CAM_BACK/x.jpg), else the bundle's cameras in their order.

    Raises DataError when neither tells.
    """
    found = [_CAMERA.findall(str(path)) for path in sample.images]
    names = tuple(matches[-1] for matches in found if matches)
    if len(names) == len(set(names)) == len(sample.images):
        return names
    known = tuple(cameras) or (CAMERAS if len(sample.images) == len(CAMERAS) else CAMERAS[:1])
    if len(known) != len(sample.images):
        raise DataError(
            f"{sample.source}: images: cannot tell the cameras of {len(sample.images)} images; "
            f"expected their names in the paths, or as many images as the bundle has cameras ({len(known)})"
        )
    return known
