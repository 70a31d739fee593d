"""The benchmarks of the runtime run from the command line, at a size for seconds; their figures mean nothing here."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from places import ROOT

from drivekd.runtime.engine import ort

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


def test_prefix_counts_what_changed(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    flags = ("--bundle", small_export.bundle, "--images", IMAGES, "--frames", 2, "--threads", 1)
    found = run_benchmark("-m", "benchmarks.runtime.prefix", *flags).rows
    rows = {row["changed"]: row for row in found}
    assert list(rows) == ["0", "1", "2", "3", "first alone"]
    for changed in range(IMAGES + 1):
        assert rows[str(changed)]["images_encoded"] == changed
        assert len(rows[str(changed)]["vision_ms"]) == 2
    tokens = [rows[str(changed)]["tokens_prefilled"] for changed in range(IMAGES + 1)]
    assert tokens[0] == 0
    assert len(set(np.diff(tokens[1:]))) == 1  # each further image costs its own tokens
    assert rows["first alone"]["images_encoded"] == 1
    assert rows["first alone"]["tokens_prefilled"] == tokens[-1]


def test_prefix_without_vision_encodes_as_many(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    flags = ("--bundle", small_export.bundle, "--images", 2, "--frames", 1, "--threads", 1, "--encoded")
    found = run_benchmark("-m", "benchmarks.runtime.prefix", *flags).rows
    assert [row["images_encoded"] for row in found] == [0, 1, 2, 1]


def test_a_line_through_proportional_times_is_found() -> None:
    from benchmarks.runtime.prefix import proportionality

    tokens = [0, 256, 512, 1536]
    assert proportionality(tokens, [3 + 0.5 * one for one in tokens]) == pytest.approx(
        {"ms_per_token": 0.5, "rest_ms": 3.0, "explained": 1.0}
    )
    assert proportionality(tokens, [1.0, -1.0, -1.0, 1.0])["explained"] < 0.5  # no line


def test_ratio_is_of_turns_that_followed_each_other() -> None:
    """A machine that slows down for both alike does not move it."""
    from benchmarks.runtime.engine_process import turn_ratios

    slow_spell = [1.0, 9.0, 9.0, 1.0]
    assert turn_ratios([2 * one for one in slow_spell], slow_spell) == {"ratio": 2, "ratio_min": 2, "ratio_max": 2}


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


def test_around_is_what_was_not_within_the_engine_call() -> None:
    from benchmarks.runtime.triad_report import decode_summary

    turn = {"decode_s": 1.0, "steps": 10, "decoded": 10, "engine_s": 0.9, "around_cpu_s": 0.05, "cpu_s": 1.0}
    bound = {**turn, "decode_s": 0.8}
    row = {"table": "decode", "engine": "drivekd", "turns": [turn], "bound": [bound], "peer": [turn], "rss_mb": 1, "peak_mb": 1}
    found = decode_summary(row)
    assert found["around"] == pytest.approx(0.1)
    assert found["around_cpu_ms"] == pytest.approx(5)
    assert found["beyond_bound"] == pytest.approx(0.2)
    assert found["ratio"] == 1


def test_everything_of_the_runtime_runs_once(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    """What docs/runtime.md has the car's Python run; here in this one."""
    printed = run_benchmark("benchmarks/runtime/smoke.py", small_export.bundle)
    assert "FAIL" not in printed.stdout
    assert "ok   a session in a child process says the same" in printed.stdout


def test_documented_snippet(small_export: SmallExport, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "runtime.md").read_text(), re.DOTALL)
    monkeypatch.chdir(small_export.folder)
    (small_export.folder / "bundle").symlink_to(small_export.bundle)
    names: dict[str, Any] = {"image": np.full((90, 160, 3), 120, np.uint8)}
    exec(snippet, names)
    assert set(names["answers"]["planning"].structured) == {"actions", "reason", "probability", "complete"}
