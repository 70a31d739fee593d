"""The triad benchmark from the command line, at a size for seconds; its figures mean nothing here."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from command_fixtures import Printed, RunBenchmark, SmallExport

pytestmark = pytest.mark.e2e

IMAGES = 3
TOKENS = 6


@pytest.fixture(scope="module")
def triad(small_export: SmallExport, run_benchmark: RunBenchmark) -> Printed:
    work = small_export.folder
    return run_benchmark(
        *("-m", "benchmarks.runtime.triad", "--work", work, "--bundle", small_export.bundle, "--images", IMAGES),
        *("--tokens", TOKENS, "--frames", 2, "--answers", 2, "--turn", 24, "--threads", 1),
        *("--peer-python", work / "no-such-python", "--out", work / "triad.jsonl"),
    )


def _rows(found: list[dict[str, Any]], table: str) -> dict[str, dict[str, Any]]:
    return {row["engine"]: row for row in found if row["table"] == table}


def test_a_missing_peer_is_left_out_and_named(triad: Printed) -> None:
    found = triad.rows
    assert {row["engine"] for row in found} == {"drivekd", "drivekd, structured", "bound by hand"}
    assert triad.stderr.count("left out: genai") == 3  # each of its modes


def test_a_frame_reads_every_image_once_and_answers_three_times(triad: Printed) -> None:
    rows = _rows(triad.rows, "frame")
    for row in rows.values():
        assert len(row["seconds"]) == 2
        assert row["counts"]["images_encoded"] == IMAGES
        assert len(row["lengths"]) == 3
        assert row["prefill_s"] + row["questions_s"] + row["decode_s"] <= row["p50_s"]
    free = rows["drivekd"]
    assert free["lengths"] == [TOKENS] * 3
    assert free["ratio"] == 1
    # each image, each question, then one batched call a token: nothing is read twice, and the system prompt not again
    assert free["counts"]["engine_calls"] == IMAGES + 3 + TOKENS - 1


def test_decoding_is_timed_with_what_lies_around_the_engine(triad: Printed) -> None:
    rows = _rows(triad.rows, "decode")
    assert list(rows) == ["bound by hand", "drivekd", "drivekd, structured"]
    for row in rows.values():
        assert 0 < row["min_ms"] <= row["p50_ms"]
        assert row["ratio"] is None  # no peer
    assert rows["bound by hand"]["of_bound"] == 1
    assert rows["bound by hand"]["around"] is None
    for name in ("drivekd", "drivekd, structured"):
        assert 0 < rows[name]["around"] < 1
    assert rows["drivekd"]["tokens_per_s"] == pytest.approx(1e3 / rows["drivekd"]["p50_ms"])


def test_forced_tokens_save_engine_calls_of_the_same_answers(triad: Printed) -> None:
    (row,) = _rows(triad.rows, "forced").values()
    assert all(0 < forced < length for forced, length in zip(row["forced"], row["lengths"], strict=True))
    # as one batch, without skipping: a call for every token of the longest answer but its first, which the question gave
    assert row["every_calls"] == max(row["every_lengths"]) - 1
    assert row["calls"] < row["every_calls"]
    assert row["saved"] == pytest.approx(1 - row["calls"] / row["every_calls"])


def test_rows_go_to_a_file_too(triad: Printed, small_export: SmallExport) -> None:
    assert [json.loads(line) for line in (small_export.folder / "triad.jsonl").read_text().splitlines()] == triad.rows


def test_a_peer_that_dies_is_left_out_and_the_rest_goes_on() -> None:
    from benchmarks.runtime.engine_process import EngineEndedError
    from benchmarks.runtime.triad import _take_turns
    from benchmarks.runtime.triad_contestants import Contestant

    ours, peer = SimpleNamespace(label="session", running=True), SimpleNamespace(label="genai", running=True)
    contestants = [Contestant("drivekd", "free", ours), Contestant("kept", "kept", peer), Contestant("batch", "batch", peer)]

    def ask(contestant: Contestant, number: int) -> dict[str, Any]:
        if (contestant.label, number) == ("batch", 1):
            peer.running = False
            raise EngineEndedError("killed")
        return {"seconds": 1.0}

    assert list(_take_turns(contestants, 3, ask, "frame")) == ["drivekd"]
    assert len(_take_turns(contestants[:1], 3, ask, "frame")["drivekd"]) == 3
    with pytest.raises(EngineEndedError):  # without ours there is nothing to compare
        _take_turns([Contestant("batch", "batch", ours)], 2, ask, "frame")
