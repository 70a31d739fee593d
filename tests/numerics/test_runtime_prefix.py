"""What is kept from frame to frame is what reading the frame anew would give; and no more is read than has changed.

Both families in both dialects, six cameras.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from dialect_exports import FAMILIES, Exported, exported_family
from numpy.typing import NDArray

import drivekd.runtime.gqa as gqa_module
import drivekd.runtime.prefix as prefix_module
from drivekd.errors import RunnerError
from drivekd.images import RGBImage
from drivekd.runtime.arena import Arena, ArenaCache
from drivekd.runtime.deadline import Deadline
from drivekd.runtime.decoder import Cache
from drivekd.runtime.golden import golden_images
from drivekd.runtime.manifest import DIALECTS
from drivekd.runtime.session import Session
from drivekd.runtime.triad import branch

NUM_CAMERAS = 6
PLAIN = 1e-5  # of the largest value: one long call sums in another order than several short ones (found 2e-6)

Images = dict[str, RGBImage]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_family(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture(scope="module", params=DIALECTS)
def sessions(request: pytest.FixtureRequest, exported: Exported) -> Iterator[tuple[Session, Session]]:
    """One whose prefix is kept and whose memory is reserved, and one that reads everything anew."""
    with (
        Session(exported.bundle, threads=1, dialect=request.param) as kept,
        Session(exported.bundle, threads=1, dialect=request.param) as anew,
    ):
        yield kept, anew


@pytest.fixture
def kept(sessions: tuple[Session, Session]) -> Session:
    sessions[0].prefix.forget()
    return sessions[0]


@pytest.fixture
def anew(sessions: tuple[Session, Session]) -> Session:
    sessions[1].prefix.forget()
    return sessions[1]


@pytest.fixture
def frame(exported: Exported) -> Images:
    return golden_images(exported.bundle.manifest.images.tile_px, NUM_CAMERAS)


def other_image(image: RGBImage, rng: np.random.Generator) -> RGBImage:
    return np.roll(image, int(rng.integers(1, 20)), axis=1) ^ rng.integers(1, 255, 3, np.uint8)


def changed(frame: Images, cameras: Any, rng: np.random.Generator) -> Images:
    return {name: other_image(tile, rng) if name in cameras else tile for name, tile in frame.items()}


def read(session: Session, frame: Images) -> Cache:
    cache = session.prefix.read(frame, Deadline())
    assert cache is not None
    return cache


def read_anew(session: Session, frame: Images) -> Cache:
    session.prefix.forget()
    return read(session, frame)


def image_starts(session: Session, num_images: int) -> list[int]:
    """Where images begin in the ids, and where the ids end, found one by one."""
    ids, chat = session.prompts.prefix(num_images), session.manifest.chat
    starts, index = [], 0
    while index < len(ids):
        if ids[index] == session.prompts.image_token_id:
            starts.append(index)
            index += chat.tokens_per_image
        else:
            index += 1
    assert len(starts) == num_images
    return [*starts, len(ids)]


def assert_bits_equal(found: Cache, expected: Cache) -> None:
    assert found.num_tokens.tolist() == expected.num_tokens.tolist()
    assert found.next_positions.tolist() == expected.next_positions.tolist()
    for a, b in zip(found.kv(0), expected.kv(0), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("seed", range(3))
def test_kept_frames_are_bit_for_bit_what_reading_them_anew_gives(
    kept: Session, anew: Session, frame: Images, seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random drives: any cameras change, leave, come back or swap; K/V, logits and counts are as they must be."""
    monkeypatch.setattr(prefix_module, "CHUNK", chunk)
    rng, names = np.random.default_rng(seed), list(frame)
    now, last = frame, Images()
    kept.decoder.reserve(3, 250)
    for _ in range(12):
        cache = read(kept, now)
        assert_bits_equal(cache, read_anew(anew, now))
        questions = [[7] * 3, [8] * 5, [9]]
        found, _ = branch(kept.decoder, cache, questions, room=4)
        expected, _ = branch(anew.decoder, read(anew, now), questions, room=4)
        assert np.array_equal(found, expected)
        _assert_counts(kept, last, now)
        last = now
        here = [name for name in names if rng.random() < 0.9] or names[:1]
        if rng.random() < 0.2:
            rng.shuffle(here)
        frame = changed(frame, rng.choice(names, rng.integers(0, 4)), rng)
        now = {name: frame[name] for name in here}


def _assert_counts(session: Session, last: Images, now: Images) -> None:
    """Only what changed was computed; where the number of images changed, the last common one is read once more at most."""
    new = [name for name, tile in now.items() if name not in last or not np.array_equal(last[name], tile)]
    assert session.prefix.counts["images_encoded"] == len(new)
    pairs = zip(last.items(), now.items(), strict=False)
    common = next((i for i, ((a, x), (b, y)) in enumerate(pairs) if a != b or not np.array_equal(x, y)), min(len(last), len(now)))
    starts = image_starts(session, len(now))
    behind_last = common == min(len(last), len(now)) and len(last) != len(now)  # its text differs, or begins another image
    first = 0 if not last else starts[max(0, common - behind_last)]
    read_tokens = session.prefix.counts["tokens_prefilled"]
    assert starts[-1] - (starts[common] if last else 0) <= read_tokens <= starts[-1] - first


@pytest.mark.parametrize("first", range(NUM_CAMERAS + 1))
def test_work_is_proportional_to_what_changed(kept: Session, frame: Images, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cameras from one on change: as many vision passes, as many tokens; the system prompt is never read again."""
    read(kept, frame)
    calls, passes = kept.decoder.engine_calls, []
    infer = kept.vision.infer
    monkeypatch.setattr(kept.vision, "infer", lambda feeds: passes.append(1) or infer(feeds))
    read(kept, changed(frame, list(frame)[first:], np.random.default_rng(0)))
    starts, number = image_starts(kept, NUM_CAMERAS), NUM_CAMERAS - first
    assert kept.prefix.counts == {"images_encoded": number, "tokens_prefilled": starts[-1] - starts[first]}
    assert len(passes) == kept.decoder.engine_calls - calls == number
    assert (kept.prefix.timings_ms["vision"] > 0) == (kept.prefix.timings_ms["prefill"] > 0) == (number > 0)
    assert starts[0] > 0, "there is a system prompt"


def test_an_unchanged_image_behind_a_changed_one_is_not_seen_again(kept: Session, frame: Images) -> None:
    """Its K/V must be read anew, its embeddings need not."""
    read(kept, frame)
    read(kept, changed(frame, list(frame)[:1], np.random.default_rng(0)))
    starts = image_starts(kept, NUM_CAMERAS)
    assert kept.prefix.counts == {"images_encoded": 1, "tokens_prefilled": starts[-1] - starts[0]}


def plain_prefill(session: Session, frame: Images) -> tuple[NDArray[np.float32], Cache]:
    """The slow obvious way: all ids in one call."""
    processor = session.prefix._processor
    ids = np.asarray([session.prompts.prefix(len(frame))])
    embeds = session.decoder.embed(ids)
    pixel_values = [processor.normalize(tile)[None] for tile in frame.values()]
    seen = [session.vision.infer({"pixel_values": pixels})["image_embeds"].numpy() for pixels in pixel_values]
    embeds[ids == session.prompts.image_token_id] = np.concatenate(seen).reshape(-1, embeds.shape[-1])
    return session.decoder.forward(embeds, session.decoder.empty_cache(), processor.prefix_positions(ids[0].tolist())[:, None])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 512])
def test_chunked_and_plain_prefill_agree(kept: Session, frame: Images, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_module, "CHUNK", chunk)
    _, expected = plain_prefill(kept, frame)
    read(kept, changed(frame, list(frame)[3:], np.random.default_rng(0)))
    found = read(kept, frame)
    assert found.num_tokens.tolist() == expected.num_tokens.tolist()
    assert found.next_positions.tolist() == expected.next_positions.tolist()
    for a, b in zip(found.kv(0), expected.kv(0), strict=True):
        assert np.abs(a - b).max() <= PLAIN * np.abs(b).max()
    a, b = (branch(kept.decoder, cache, [[5, 6, 7]])[0] for cache in (found, expected))
    assert np.abs(a - b).max() <= PLAIN * np.abs(b).max()


class Calls:
    """Engine calls of a session, and a deadline that counts them instead of milliseconds."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self._session, self._vision = session, 0
        infer = session.vision.infer

        def counted(feeds: Any) -> Any:
            self._vision += 1
            return infer(feeds)

        monkeypatch.setattr(session.vision, "infer", counted)

    def made(self) -> int:
        return self._vision + self._session.decoder.engine_calls

    def after(self, number: int) -> Callable[[], bool]:
        start = self.made()
        return lambda: self.made() - start >= number


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
@pytest.mark.parametrize("allowed", range(2 * NUM_CAMERAS + 1))
def test_what_was_read_before_the_deadline_is_kept(
    kept: Session, anew: Session, frame: Images, allowed: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read twice, nothing is half read, and the rest of an older frame is gone."""
    read(kept, changed(frame, list(frame)[2:], np.random.default_rng(0)))
    calls = Calls(kept, monkeypatch)
    total = 2 * (NUM_CAMERAS - 2)
    counts = []
    late = calls.after(allowed)
    with monkeypatch.context() as patch:
        if how == "deadline":
            patch.setattr(Deadline, "expired", lambda self: late())
        found = kept.prefix.read(frame, Deadline(), late if how == "cancelled" else None)
    counts.append(kept.prefix.counts)
    assert (found is None) == (allowed < total)
    start = calls.made()
    cache = read(kept, frame)
    counts.append(kept.prefix.counts)
    assert calls.made() - start == max(0, total - allowed)
    starts = image_starts(kept, NUM_CAMERAS)
    assert sum(count["images_encoded"] for count in counts) == NUM_CAMERAS - 2
    assert sum(count["tokens_prefilled"] for count in counts) == starts[-1] - starts[2]
    assert_bits_equal(cache, read_anew(anew, frame))


@pytest.mark.parametrize("allowed", range(0, 2 * NUM_CAMERAS, 2))
def test_a_frame_that_was_cut_off_leaves_no_trace(
    kept: Session, anew: Session, frame: Images, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next frame differs from both; frames are cut off again and again."""
    rng, calls, now = np.random.default_rng(allowed), Calls(kept, monkeypatch), frame
    for _ in range(4):
        kept.prefix.read(now, Deadline(), calls.after(allowed))
        now = changed(now, rng.choice(list(frame), 2), rng)
    assert_bits_equal(read(kept, now), read_anew(anew, now))


def test_a_buffer_that_a_camera_writes_over_is_seen(kept: Session, anew: Session, frame: Images) -> None:
    frame = {name: tile.copy() for name, tile in frame.items()}
    read(kept, frame)
    frame["camera_1"][:] = 255 - frame["camera_1"]
    assert_bits_equal(read(kept, frame), read_anew(anew, frame))
    assert kept.prefix.counts["images_encoded"] == 1


@pytest.mark.parametrize("broken_call", range(2 * NUM_CAMERAS + 1))
def test_nothing_that_a_broken_engine_gave_is_kept(
    kept: Session, anew: Session, frame: Images, broken_call: int, monkeypatch: pytest.MonkeyPatch
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
    assert_bits_equal(read(kept, frame), read_anew(anew, frame))


def test_an_engine_that_fails_leaves_nothing(
    kept: Session, anew: Session, frame: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(kept, frame)
    after = changed(frame, ["camera_4"], np.random.default_rng(0))

    def failing(*args: Any) -> Any:
        raise RunnerError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(kept.decoder, "forward", failing)
        with pytest.raises(RunnerError, match="gone"):
            kept.prefix.read(after, Deadline())
    assert_bits_equal(read(kept, after), read_anew(anew, after))
    assert kept.prefix.counts["images_encoded"] == NUM_CAMERAS


def test_images_of_the_last_frame_are_not_seen_again(kept: Session, frame: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity gate asks for what the prefix has seen."""
    expected = kept.prefix.image_embeds(list(frame.values()))
    read(kept, frame)
    passes: list[int] = []
    infer = kept.vision.infer
    monkeypatch.setattr(kept.vision, "infer", lambda feeds: passes.append(1) or infer(feeds))
    assert np.array_equal(kept.prefix.image_embeds(list(frame.values())), expected)
    assert passes == []
    other = changed(frame, ["camera_2"], np.random.default_rng(0))
    assert not np.array_equal(kept.prefix.image_embeds(list(other.values())), expected)
    assert passes == [1]


# K/V memory of a session: only the dialect that writes in place has any


@pytest.fixture
def in_place(exported: Exported) -> Iterator[Session]:
    with Session(exported.bundle, threads=1, dialect="gqa") as session:
        session.decoder.reserve(3, 250)
        yield session


def drive(session: Session, frame: Images, steps: int = 5) -> Cache:
    logits, cache = branch(session.decoder, read(session, frame), [[7] * 3, [8] * 5, [9]], room=steps)
    for step in range(steps):
        if step == 2:  # the second answer has ended
            logits, cache = logits[[0, 2]], cache.compact([0, 2])
        logits, cache = session.decoder.step(logits.argmax(axis=1).tolist(), cache)
    return cache


def test_frames_take_no_new_memory(in_place: Session, frame: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the prefix nor for branches, nor for logits: all is where the first frame had it."""
    drive(in_place, frame)
    rng = np.random.default_rng(0)

    def refused(*args: Any, **options: Any) -> Any:
        raise AssertionError("new memory")

    monkeypatch.setattr(gqa_module, "new_arena", refused)
    monkeypatch.setattr(Arena, "like", refused)
    for _ in range(6):
        frame = changed(frame, rng.choice(list(frame), 2), rng)
        drive(in_place, frame)
        in_place.decoder.reserve(3, 250)
    in_place.prefix.forget()
    drive(in_place, dict(itertools.islice(frame.items(), 2)))


def test_branches_copy_what_changed(in_place: Session, frame: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    columns: list[int] = []
    move = Arena.move

    def counted(arena: Arena, source: Arena, source_row: int, row: int, stop: int, start: int = 0) -> None:
        columns.append(stop - start)
        move(arena, source, source_row, row, stop, start)

    drive(in_place, frame)
    monkeypatch.setattr(Arena, "move", counted)
    starts = image_starts(in_place, NUM_CAMERAS)
    for first in (4, 5, 0):
        frame, before = changed(frame, list(frame)[first:], np.random.default_rng(first)), len(columns)
        in_place.decoder.read([[7], [8], [9]], read(in_place, frame).select([0] * 3, room=9))
        assert columns[before:] == [starts[-1] - starts[first]] * 3
    drive(in_place, frame)
    assert max(columns[before + 3 :]) <= 5 + 5, "an unchanged prefix was copied, or moved when a branch ended"


def test_more_may_be_reserved_while_a_prefix_is_kept(in_place: Session, exported: Exported, frame: Images) -> None:
    """A longer question than ever, or more cameras: the prefix is neither lost nor read again."""
    few = dict(itertools.islice(frame.items(), 2))
    cache = read(in_place, few)
    in_place.decoder.reserve(4, 400)
    assert read(in_place, few) is cache
    found = cache.select([0] * 4, room=100)
    assert isinstance(found, ArenaCache)
    assert found.arena.reserved
    assert found.arena.capacity >= 400
    whole = read(in_place, frame)
    starts = image_starts(in_place, NUM_CAMERAS)
    assert in_place.prefix.counts["tokens_prefilled"] <= starts[-1] - starts[1]
    with Session(exported.bundle, threads=1, dialect="gqa") as anew:
        assert_bits_equal(whole, read(anew, frame))


def test_the_prefix_of_an_older_frame_is_refused(in_place: Session, frame: Images) -> None:
    older = read(in_place, frame)
    newer = read(in_place, changed(frame, ["camera_5"], np.random.default_rng(0)))
    with pytest.raises(RunnerError, match="spent"):
        branch(in_place.decoder, older, [[7]])
    branch(in_place.decoder, newer, [[7]])


def test_an_answer_that_overflows_its_memory_is_refused(in_place: Session, frame: Images) -> None:
    """With numbers, and before the engine writes behind the end of a row."""
    prefix = read(in_place, dict(itertools.islice(frame.items(), 1)))
    logits, cache = branch(in_place.decoder, prefix, [[7]] * 3, room=9)
    calls = in_place.decoder.engine_calls
    for _ in range(256 - int(prefix.num_tokens[0]) - 1):
        logits, cache = in_place.decoder.step(logits.argmax(axis=1).tolist(), cache)
    with pytest.raises(RunnerError, match="holds 256 tokens a branch; 256 are read and 1 more make 257"):
        in_place.decoder.step([7] * 3, cache)
    assert in_place.decoder.engine_calls - calls == 256 - int(prefix.num_tokens[0]) - 1
