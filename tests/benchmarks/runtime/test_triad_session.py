"""The session of the triad benchmark is asked what its peer is asked."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from drivekd.runtime.engine import ort

if TYPE_CHECKING:
    from command_fixtures import SmallExport

pytestmark = pytest.mark.e2e

IMAGES = 3
TOKENS = 6


def test_prompt_of_the_peer_is_the_frame_as_text(small_export: SmallExport, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the peer reads as ids and what the session reads as images give the same logits: the comparison is of one model."""
    monkeypatch.setattr(ort.BoundGraph, "run", ort.BoundGraph.run)  # the session's clock wraps both: back at the end
    monkeypatch.setattr(ort.OrtRunner, "infer", ort.OrtRunner.infer)
    from benchmarks.runtime.triad_bound import BoundFrames
    from benchmarks.runtime.triad_frame import Frame
    from benchmarks.runtime.triad_session import SessionFrames

    session, bound = SessionFrames(small_export.bundle, 1), BoundFrames(small_export.bundle, 1)
    described = session.describe(IMAGES)
    words = np.random.default_rng(0).integers(300, 600, described["prefix"].count(described["image_token_id"])).tolist()
    rest = iter(words)
    prefix = [next(rest) if token == described["image_token_id"] else token for token in described["prefix"]]
    content = [part.tolist() for part in np.split(np.asarray(words), IMAGES)]
    frame = Frame(prefix, content, described["questions"], TOKENS)
    session.frame(frame, "free")
    bound.frame(dataclasses.replace(frame, questions=frame.questions[:1]), "bound")
    ours, theirs = session.logits()[0], bound.logits()[0]
    # one model and one thread, but the session reads in chunks: float32 sums in another order
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)
