"""Frames that a deadline, a question that was taken back or a broken engine cut off: what was read stays, nothing else does.

Both families in both dialects, six cameras.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dialect_cases import NUM_CAMERAS, Images, assert_bits_equal, changed, image_starts, read_anew
from numpy.typing import NDArray

from drivekd.errors import RunnerError
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.session.model import StartedModel

pytestmark = pytest.mark.numerics


class Calls:
    """Engine calls of a model, and a deadline that counts them instead of milliseconds."""

    def __init__(self, model: StartedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self._model, self._vision = model, 0
        infer = model.vision.infer

        def counted(feeds: Any) -> Any:
            self._vision += 1
            return infer(feeds)

        monkeypatch.setattr(model.vision, "infer", counted)

    def made(self) -> int:
        return self._vision + self._model.decoder.engine_calls

    def after(self, number: int) -> Callable[[], bool]:
        start = self.made()
        return lambda: self.made() - start >= number


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
@pytest.mark.parametrize("allowed", range(2 * NUM_CAMERAS + 1))
def test_what_was_read_before_the_deadline_is_kept(
    kept: StartedModel, anew: StartedModel, frame: Images, allowed: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read twice, nothing is half read, and the rest of an older frame is gone."""
    kept.read(changed(frame, list(frame)[2:], np.random.default_rng(0)))
    calls = Calls(kept, monkeypatch)
    total = 2 * (NUM_CAMERAS - 2)
    counts = []
    late = calls.after(allowed)
    with monkeypatch.context() as patch:
        if how == "deadline":
            patch.setattr(Deadline, "interruption", lambda self: "deadline" if late() else None)
        found = kept.prefix.read(frame, Deadline(None, late if how == "cancelled" else None))
    counts.append(kept.prefix.counts)
    assert (found is None) == (allowed < total)
    start = calls.made()
    cache = kept.read(frame)
    counts.append(kept.prefix.counts)
    assert calls.made() - start == max(0, total - allowed)
    starts = image_starts(kept, NUM_CAMERAS)
    assert sum(count["images_encoded"] for count in counts) == NUM_CAMERAS - 2
    assert sum(count["tokens_prefilled"] for count in counts) == starts[-1] - starts[2]
    assert_bits_equal(cache, read_anew(anew, frame))


@pytest.mark.parametrize("allowed", range(0, 2 * NUM_CAMERAS, 2))
def test_a_frame_that_was_cut_off_leaves_no_trace(
    kept: StartedModel, anew: StartedModel, frame: Images, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next frame differs from both; frames are cut off again and again."""
    rng, calls, now = np.random.default_rng(allowed), Calls(kept, monkeypatch), frame
    for _ in range(4):
        kept.prefix.read(now, Deadline(None, calls.after(allowed)))
        now = changed(now, rng.choice(list(frame), 2), rng)
    assert_bits_equal(kept.read(now), read_anew(anew, now))


@pytest.mark.parametrize("broken_call", range(2 * NUM_CAMERAS + 1))
def test_nothing_that_a_broken_engine_gave_is_kept(
    kept: StartedModel, anew: StartedModel, frame: Images, broken_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call gives NaN: that frame fails, the next one, of the same images, is right."""
    calls = itertools.count()
    see, forward = kept.vision.infer, kept.decoder.forward

    class Nan:
        def __init__(self, array: NDArray[Any]) -> None:
            self._array = np.full_like(array, np.nan)

        def numpy(self) -> NDArray[Any]:
            return self._array

    def infer(feeds: Any) -> Any:
        outputs = see(feeds)
        return {"image_embeds": Nan(outputs["image_embeds"].numpy())} if next(calls) == broken_call else outputs

    def broken_forward(embeds: Any, cache: Cache, positions: Any = None) -> Any:
        return forward(embeds * np.float32(np.nan if next(calls) == broken_call else 1), cache, positions)

    monkeypatch.setattr(kept.vision, "infer", infer)
    monkeypatch.setattr(kept.decoder, "forward", broken_forward)
    with pytest.raises(RunnerError, match="not finite"):
        kept.prefix.read(frame, Deadline())
    assert_bits_equal(kept.read(frame), read_anew(anew, frame))


def test_an_engine_that_fails_leaves_nothing(
    kept: StartedModel, anew: StartedModel, frame: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.read(frame)
    after = changed(frame, ["camera_4"], np.random.default_rng(0))

    def failing(*args: Any) -> Any:
        raise RunnerError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(kept.decoder, "forward", failing)
        with pytest.raises(RunnerError, match="gone"):
            kept.prefix.read(after, Deadline())
    assert_bits_equal(kept.read(after), read_anew(anew, after))
    assert kept.prefix.counts["images_encoded"] == NUM_CAMERAS
