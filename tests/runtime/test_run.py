"""`run` and `bench` behind the command line, on a real tiny bundle."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drivekd.errors import DataError, UsageError
from drivekd.images import RGBImage, load_image
from drivekd.runtime import Session, bench_bundle
from drivekd.runtime.answers.answer import Answer
from drivekd.runtime.answers.schemas import default_schemas, valid_answer
from drivekd.runtime.bench_tables import bench_tables
from drivekd.runtime.run import FrameReport, run_command

pytestmark = pytest.mark.numerics

CAPABILITIES = ("perception", "reasoning", "planning")
NUM_FRAMES = 3


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of NUM_FRAMES different pictures."""
    folder = tmp_path_factory.mktemp("road")
    rng = np.random.default_rng(5)
    for index in range(NUM_FRAMES):
        Image.fromarray(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def run_one(bundle: Path, *words: object, **options: object) -> FrameReport:
    (report,) = run_command(bundle, [str(word) for word in words], **options)  # type: ignore[arg-type]
    return report


def same_answers(one: dict[str, Answer], other: dict[str, Answer]) -> bool:
    return {name: (a.text, a.finish_reason) for name, a in one.items()} == {
        name: (a.text, a.finish_reason) for name, a in other.items()
    }


# --- run ------------------------------------------------------------------------------------------------------------


def test_run_gives_what_the_session_answers(bundle: Path, session: Session, road: Path) -> None:
    report = run_one(bundle, road / "0.png")
    assert same_answers(report.answers, session.answer({"camera_0": load_image(road / "0.png")}))
    found = json.loads(json.dumps(report.to_json()))
    assert set(found) >= {"frame", "answers", "timings_ms", "bundle"}
    assert found["frame"]["cameras"] == ["camera_0"]
    assert tuple(found["answers"]) == CAPABILITIES
    for name, answer in found["answers"].items():
        assert set(answer) >= {"text", "fields", "valid", "finish_reason", "tokens", "structured", "complete", "backend"}
        assert answer["text"] == report.answers[name].text
    assert found["bundle"] == session.bundle_digest
    assert [line.split(" ")[0].rstrip(":") for line in report.lines()] == list(CAPABILITIES)


def test_a_folder_is_answered_frame_by_frame_as_each_alone(bundle: Path, road: Path) -> None:
    """What an earlier frame left in the session's memory changes no later answer."""
    reports = list(run_command(bundle, [str(road)]))
    assert len(reports) == NUM_FRAMES
    texts = [tuple(answer.text for answer in report.answers.values()) for report in reports]
    assert len(set(texts)) == NUM_FRAMES, "the pictures differ, so do this model's answers"
    for index, report in enumerate(reports):
        assert same_answers(report.answers, run_one(bundle, road / f"{index}.png").answers)
        assert report.lines()[0] == f"{index:06d}  {index}.png"
    assert [report.frame.index for report in run_command(bundle, [str(road)], every=2)] == [0, 2]


def test_a_question_of_ones_own(bundle: Path, road: Path) -> None:
    report = run_one(bundle, road / "0.png", question="Is the left lane free?")
    assert list(report.answers) == ["question"]


def test_structured_answers_are_json_under_the_schema(bundle: Path, session: Session, road: Path) -> None:
    report = run_one(bundle, road / "0.png", structured=True)
    for name, answer in report.answers.items():
        assert answer.structured is not None
        assert json.loads(answer.text) == answer.structured
        assert valid_answer(default_schemas(session.cameras)[name], answer.structured) is None
    assert json.loads(json.dumps(report.to_json()))["answers"]["planning"]["structured"] == report.answers["planning"].structured


@pytest.mark.parametrize("structured", [False, True])
def test_a_deadline_ends_the_answers_and_is_said(bundle: Path, road: Path, structured: bool) -> None:
    report = run_one(bundle, road / "0.png", deadline_ms=0, structured=structured)
    assert {answer.finish_reason for answer in report.answers.values()} == {"deadline"}
    assert not any(answer.valid or answer.complete for answer in report.answers.values())
    assert all("(deadline)" in line for line in report.lines())


def test_growing_texts_end_as_the_answers_and_the_place_is_cleared(bundle: Path, road: Path) -> None:
    shown: list[dict[str, str]] = []
    reports = list(run_command(bundle, [str(road)], every=2, on_texts=lambda texts: shown.append(dict(texts))))
    ends = [index for index, texts in enumerate(shown) if not texts]
    assert len(ends) == len(reports)
    for end, report in zip(ends, reports, strict=True):
        assert shown[end - 1] == {name: answer.text for name, answer in report.answers.items() if answer.text}


def test_overlays_are_written_beside_nothing_else(bundle: Path, road: Path, tmp_path: Path) -> None:
    reports = list(run_command(bundle, [str(road)], overlay=tmp_path / "out"))
    written = [report.overlay for report in reports]
    assert sorted((tmp_path / "out").iterdir()) == written == [tmp_path / "out" / f"{i:06d}-overlay.jpg" for i in range(3)]
    assert len({load_image(path).shape for path in written if path is not None}) == 1
    assert json.loads(json.dumps(reports[0].to_json()))["overlay"] == str(written[0])
    before = (road / "0.png").read_bytes()
    run_one(bundle, road / "0.png", overlay=road.parent / "beside")
    assert (road / "0.png").read_bytes() == before


def test_frames_before_a_broken_one_are_answered(bundle: Path, road: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((road / "0.png").read_bytes())
    (tmp_path / "1.png").write_bytes(b"no picture")
    reports = run_command(bundle, [str(tmp_path)])
    assert next(reports).answers
    with pytest.raises(DataError, match=r"1\.png"):
        next(reports)


# --- bench ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changed", "encoded"), [(None, 3), (3, 3), (1, 1), (0, 0)])
def test_bench_changes_as_many_cameras_as_asked(bundle: Path, changed: int | None, encoded: int) -> None:
    report = bench_bundle(bundle, frames=2, warmup=1, images=3, changed=changed, max_new_tokens=3, threads=1)
    assert report.images == 3
    assert report.counts["images_encoded"] == encoded
    assert (report.counts["tokens_prefilled"] > 0) == bool(encoded)
    assert report.tokens_per_frame == 9
    assert report.answers == 3
    assert report.stream_tokens_per_s == pytest.approx(report.decode_tokens_per_s / 3), "three answers of one length"


def test_changed_cameras_are_the_last_ones(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, RGBImage]] = []
    original = Session.answer

    def watched(self: Session, images: dict[str, RGBImage], **options: object) -> dict[str, Answer]:
        shown.append(dict(images))
        return original(self, images, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "answer", watched)
    bench_bundle(bundle, frames=2, warmup=1, images=3, changed=2, max_new_tokens=1, threads=1)
    for one, other in pairwise(shown):
        same = [bool((one[name] == other[name]).all()) for name in one]
        assert same == [True, False, False]


def test_bench_of_structured_answers_counts_forced_tokens(bundle: Path) -> None:
    report = bench_bundle(bundle, frames=1, warmup=0, structured=True, threads=1)
    assert report.structured
    forced = report.counts["tokens_forced"]
    assert 0 < forced < report.tokens_per_frame
    decode_s = report.stage("decode").p50_ms / 1000
    sampled = report.tokens_per_frame - forced - report.answers
    assert report.decode_tokens_per_s == pytest.approx(sampled / decode_s), "tokens that cost nothing are no speed"
    assert report.stream_tokens_per_s is None
    rows = {row[0]: row[1] for row in bench_tables(report)[2][2]}
    assert f"a grammar forced {forced:.0f} of" in rows["decode, one answer"]


def test_bench_tables_say_the_conditions(bundle: Path) -> None:
    report = bench_bundle(bundle, frames=2, warmup=0, images=2, changed=1, max_new_tokens=3, threads=1)
    stages, machine, paper = bench_tables(report)
    assert "2 image(s), 1 of them new a frame, free text" in stages[0]
    assert {"vision", "prefill", "questions", "decode", "ttft", "total"} <= {row[0] for row in stages[2]}
    assert "start: verify, load, parity gate" in {row[0] for row in machine[2]}
    rows = {row[0]: row[1:] for row in paper[2]}
    assert rows["decode, one answer"][1] == "45.7 tokens/s"
    assert rows["time to first token"][1] == "0.45 s"
    assert rows["memory"][1] == "4.1 GB"
    assert rows["precision"] == ["fp32", "not stated"]
    assert "no ratio" in paper[0]
    assert all(len(row) == len(table[1]) for table in (stages, machine, paper) for row in table[2])
    assert json.loads(json.dumps(report.to_json()))["power"]["readings"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "expected frames >= 1"),
        ({"images": 0}, "images >= 1"),
        ({"images": 2, "changed": 3}, "3 changed cameras asked; a frame here has 2, so 0 to 2"),
        ({"changed": -1}, "-1 changed cameras"),
    ],
)
def test_bench_refuses_what_cannot_be(bundle: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench_bundle(bundle, threads=1, **options)  # type: ignore[arg-type]
