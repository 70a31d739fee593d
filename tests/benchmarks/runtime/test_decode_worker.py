"""The decoder that is bound by hand: what is timed is what the product computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from command_fixtures import SmallExport

pytestmark = pytest.mark.e2e

TOKENS = 6


def test_bound_decoder_agrees_with_the_session(small_export: SmallExport) -> None:
    """What is timed is what the product computes: same tokens, same logits behind the prompt."""
    from benchmarks.runtime.decode_worker import BoundBundle
    from drivekd.runtime.bundle.reader import read_bundle
    from drivekd.runtime.session.session import Session

    bundle, prompt = small_export.bundle, np.random.default_rng(0).integers(300, 600, 24).tolist()
    bound = BoundBundle(bundle, threads=1)
    tokens = [bound.start(prompt, TOKENS), *(bound.step() for _ in range(TOKENS))]
    with Session(read_bundle(bundle), dialect="gqa", threads=1) as session:
        logits, cache = session.model.decoder.read([prompt], session.model.decoder.empty_cache(1, room=len(prompt) + TOKENS))
        # one engine, one graph and one thread: only buffers differ
        np.testing.assert_array_equal(bound.logits, logits[0])
        for token in tokens[:-1]:
            assert token == logits[0].argmax()
            logits, cache = session.model.decoder.step([token], cache)
        assert tokens[-1] == logits[0].argmax()


def test_a_sequence_starts_from_nothing(small_export: SmallExport) -> None:
    from benchmarks.runtime.decode_worker import BoundBundle

    bound = BoundBundle(small_export.bundle, threads=1)
    prompt = list(range(300, 320))
    first = [bound.start(prompt, TOKENS), bound.step(), bound.step()]
    bound.start(list(range(400, 440)), TOKENS)
    assert [bound.start(prompt, TOKENS), bound.step(), bound.step()] == first
