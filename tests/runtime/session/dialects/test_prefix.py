"""What is kept from frame to frame is what reading the frame anew would give; and no more is read than has changed.

Both families in both dialects, six cameras.
"""

from __future__ import annotations

import numpy as np
import pytest
from dialect_cases import NUM_CAMERAS, Images, assert_bits_equal, changed, image_starts, read_anew
from numpy.typing import NDArray

import drivekd.runtime.session.prefix as prefix_module
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.triad import branch

pytestmark = pytest.mark.numerics

PLAIN = 1e-5  # of the largest value: one long call sums in another order than several short ones (found 2e-6)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("seed", range(3))
def test_kept_frames_are_bit_for_bit_what_reading_them_anew_gives(
    kept: StartedModel, anew: StartedModel, frame: Images, seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random drives: any cameras change, leave, come back or swap; K/V, logits and counts are as they must be."""
    monkeypatch.setattr(prefix_module, "CHUNK", chunk)
    rng, names = np.random.default_rng(seed), list(frame)
    now, last = frame, Images()
    kept.decoder.reserve(3, 250)
    for _ in range(12):
        cache = kept.read(now)
        assert_bits_equal(cache, read_anew(anew, now))
        questions = [[7] * 3, [8] * 5, [9]]
        found, _ = branch(kept.decoder, cache, questions, room=4)
        expected, _ = branch(anew.decoder, anew.read(now), questions, room=4)
        assert np.array_equal(found, expected)
        _assert_counts(kept, last, now)
        last = now
        here = [name for name in names if rng.random() < 0.9] or names[:1]
        if rng.random() < 0.2:
            rng.shuffle(here)
        frame = changed(frame, rng.choice(names, rng.integers(0, 4)), rng)
        now = {name: frame[name] for name in here}


def _assert_counts(model: StartedModel, last: Images, now: Images) -> None:
    """Only what changed was computed; where the number of images changed, the last common one is read once more at most."""
    new = [name for name, tile in now.items() if name not in last or not np.array_equal(last[name], tile)]
    assert model.prefix.counts["images_encoded"] == len(new)
    pairs = zip(last.items(), now.items(), strict=False)
    common = next((i for i, ((a, x), (b, y)) in enumerate(pairs) if a != b or not np.array_equal(x, y)), min(len(last), len(now)))
    starts = image_starts(model, len(now))
    behind_last = common == min(len(last), len(now)) and len(last) != len(now)  # its text differs, or begins another image
    first = 0 if not last else starts[max(0, common - behind_last)]
    read_tokens = model.prefix.counts["tokens_prefilled"]
    assert starts[-1] - (starts[common] if last else 0) <= read_tokens <= starts[-1] - first


@pytest.mark.parametrize("first", range(NUM_CAMERAS + 1))
def test_work_is_proportional_to_what_changed(
    kept: StartedModel, frame: Images, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cameras from one on change: as many vision passes, as many tokens; the system prompt is never read again."""
    kept.read(frame)
    calls, passes = kept.decoder.engine_calls, []
    infer = kept.vision.infer
    monkeypatch.setattr(kept.vision, "infer", lambda feeds: passes.append(1) or infer(feeds))
    kept.read(changed(frame, list(frame)[first:], np.random.default_rng(0)))
    starts, number = image_starts(kept, NUM_CAMERAS), NUM_CAMERAS - first
    assert kept.prefix.counts == {"images_encoded": number, "tokens_prefilled": starts[-1] - starts[first]}
    assert len(passes) == kept.decoder.engine_calls - calls == number
    assert (kept.prefix.timings_ms["vision"] > 0) == (kept.prefix.timings_ms["prefill"] > 0) == (number > 0)
    assert starts[0] > 0, "there is a system prompt"


def test_an_unchanged_image_behind_a_changed_one_is_not_seen_again(kept: StartedModel, frame: Images) -> None:
    """Its K/V must be read anew, its embeddings need not."""
    kept.read(frame)
    kept.read(changed(frame, list(frame)[:1], np.random.default_rng(0)))
    starts = image_starts(kept, NUM_CAMERAS)
    assert kept.prefix.counts == {"images_encoded": 1, "tokens_prefilled": starts[-1] - starts[0]}


def plain_prefill(model: StartedModel, frame: Images) -> tuple[NDArray[np.float32], Cache]:
    """The slow obvious way: all ids in one call."""
    processor = model.prefix._processor
    ids = np.asarray([model.prompts.prefix(len(frame))])
    embeds = model.decoder.embed(ids)
    pixel_values = [processor.normalize(tile)[None] for tile in frame.values()]
    seen = [model.vision.infer({"pixel_values": pixels})["image_embeds"].numpy() for pixels in pixel_values]
    embeds[ids == model.prompts.image_token_id] = np.concatenate(seen).reshape(-1, embeds.shape[-1])
    return model.decoder.forward(embeds, model.decoder.empty_cache(), processor.prefix_positions(ids[0].tolist())[:, None])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 512])
def test_chunked_and_plain_prefill_agree(kept: StartedModel, frame: Images, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_module, "CHUNK", chunk)
    _, expected = plain_prefill(kept, frame)
    kept.read(changed(frame, list(frame)[3:], np.random.default_rng(0)))
    found = kept.read(frame)
    assert found.num_tokens.tolist() == expected.num_tokens.tolist()
    assert found.next_positions.tolist() == expected.next_positions.tolist()
    for a, b in zip(found.kv(0), expected.kv(0), strict=True):
        assert np.abs(a - b).max() <= PLAIN * np.abs(b).max()
    a, b = (branch(kept.decoder, cache, [[5, 6, 7]])[0] for cache in (found, expected))
    assert np.abs(a - b).max() <= PLAIN * np.abs(b).max()


def test_a_buffer_that_a_camera_writes_over_is_seen(kept: StartedModel, anew: StartedModel, frame: Images) -> None:
    frame = {name: tile.copy() for name, tile in frame.items()}
    kept.read(frame)
    frame["camera_1"][:] = 255 - frame["camera_1"]
    assert_bits_equal(kept.read(frame), read_anew(anew, frame))
    assert kept.prefix.counts["images_encoded"] == 1


def test_images_of_the_last_frame_are_not_seen_again(kept: StartedModel, frame: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity gate asks for what the prefix has seen."""
    expected = kept.prefix.image_embeds(list(frame.values()))
    kept.read(frame)
    passes: list[int] = []
    infer = kept.vision.infer
    monkeypatch.setattr(kept.vision, "infer", lambda feeds: passes.append(1) or infer(feeds))
    assert np.array_equal(kept.prefix.image_embeds(list(frame.values())), expected)
    assert passes == []
    other = changed(frame, ["camera_2"], np.random.default_rng(0))
    assert not np.array_equal(kept.prefix.image_embeds(list(other.values())), expected)
    assert passes == [1]
