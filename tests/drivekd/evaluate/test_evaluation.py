"""The evaluator on an answerer whose texts are known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from drivekd.answered import Given
from drivekd.errors import DataError, UsageError
from drivekd.evaluate import COLUMNS, evaluate, write_report
from drivekd.evaluate.answering import CLEAN, Budgets, OnAnswer, Pictures, open_answerer
from drivekd.evaluate.answering.bundle_answerer import with_cameras
from drivekd.sample import AnswerForm, Capability, Sample

WAY = "Which way? Please select from the following options: A. Left. B. Right."
TAG = "<c1,CAM_FRONT,0.5000,0.5000>"


class Recited:
    """Gives the texts it was made with, by question."""

    name = "recited"
    digest = "sha256:0"
    budgets = Budgets()

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.asked: list[Sample] = []
        self.pictures: Pictures | None = None

    def answers(self, samples: Sequence[Sample], *, pictures: Pictures = CLEAN, on_answer: OnAnswer | None = None) -> list[Given]:
        self.asked, self.pictures = list(samples), pictures
        given = [Given(self.texts[index % len(self.texts)]) for index in range(len(samples))]
        for index, one in enumerate(given):
            if on_answer is not None:
                on_answer(index, one)
        return given


def sample(
    question: str = WAY,
    answer: str | None = "A. Left.",
    form: AnswerForm = "choice",
    capability: Capability = "planning",
    topic: str = "way",
    scene: str = "",
) -> Sample:
    return Sample("f.json, record 1", capability, question, answer, (Path("x.jpg"),), form, topic, scene)


def yes_no(answer: str, scene: str) -> Sample:
    return sample("Is it wet?", answer, "yesno", "perception", "wet", scene)


MIXED = [
    *(sample(answer=answer, scene=f"s{index}") for index, answer in enumerate(["A", "A", "B", "A"])),
    *(yes_no(answer, f"s{index}") for index, answer in enumerate(["No.", "No.", "Yes."])),
    sample("Where is it?", f"There: {TAG}", "open", "perception", "where"),
    sample("What now?", "Brake.", "open"),
]
TEXTS = ("A. Left.", "B. Right.", "B", "hm", "No.", "Yes.", "Yes.", f"{TAG} <c2,CAM_FRONT,4.32,0.8>")


def test_scores_by_hand() -> None:
    answerer = Recited(*TEXTS)
    report = evaluate(answerer, MIXED)
    assert [one.question for one in answerer.asked] == [one.question for one in MIXED[:8]], "open without tags is not asked"
    assert report.open_not_scored == 1

    planning = report.row("planning")
    assert (planning.n, planning.accuracy, planning.unparsed) == (4, 0.5, 1)
    assert (planning.majority, planning.majority_from, planning.random) == (0.75, "evaluated", 0.5)
    assert (planning.balanced_accuracy, planning.schema_valid) == (None, None)
    assert report.row("planning", "way").accuracy == 0.5

    perception = report.row("perception", "wet")
    assert perception.accuracy == pytest.approx(2 / 3)
    assert perception.balanced_accuracy == pytest.approx((1 / 2 + 1) / 2)
    assert [(row.scope, row.n) for row in report.scores if row.scope == "all"] == [("all", 7)]

    (tags,) = report.tags
    assert (tags.capability, tags.n, tags.precision, tags.recall, tags.f1, tags.malformed) == ("perception", 1, 1, 1, 1, 1)
    with pytest.raises(KeyError, match="reasoning"):
        report.row("reasoning")


def test_the_reference_gives_the_majority() -> None:
    reference = [sample(answer="B")] * 3 + [sample(answer=None)] + [sample(answer="neither")]
    report = evaluate(Recited(*TEXTS), MIXED, reference=reference)
    assert (report.row("planning").majority, report.row("planning").majority_from) == (0.25, "reference")
    assert report.row("perception").majority_from == "evaluated"
    assert report.scores[0].majority_from == "both"


def test_an_interval_beyond_the_majority() -> None:
    samples = [sample(answer="AB"[index % 2], scene=f"s{index // 2}") for index in range(100)]
    right = evaluate(Recited("A", "B"), samples).row("planning")
    assert (right.accuracy, right.majority, right.excludes_majority, right.beyond_majority) == (1.0, 0.5, True, True)
    wrong = evaluate(Recited("B", "A"), samples).row("planning")
    assert (wrong.accuracy, wrong.excludes_majority, wrong.beyond_majority) == (0.0, True, False)
    constant = evaluate(Recited("A"), samples).row("planning")
    assert (constant.accuracy, constant.excludes_majority, constant.beyond_majority) == (0.5, False, False)


def test_records_of_one_frame_are_one_cluster_without_scenes() -> None:
    samples = [replace(sample(answer="AB"[index % 2]), source=f"f.json, record {index}") for index in range(40)]
    row = evaluate(Recited("A"), samples).row("planning")
    assert row.interval == (0.0, 1.0)


def test_the_seed_is_kept_and_decides() -> None:
    samples = [sample(answer="AAB"[index % 3], scene=f"s{index**2 % 23}") for index in range(90)]
    first, *others = [evaluate(Recited("A"), samples, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert first.scores == others[0].scores
    assert any(first.scores != other.scores for other in others[1:])
    assert others[1].seed == 2


def test_what_is_done_to_the_pictures_is_asked_for_and_recorded() -> None:
    answerer = Recited("A")
    assert evaluate(answerer, [sample()], pictures=Pictures("NoImage")).images == "NoImage"
    assert answerer.pictures == Pictures("NoImage")
    assert evaluate(answerer, [sample()]).images == "clean"
    assert answerer.pictures == CLEAN


def test_schema_validity() -> None:
    structured = sample(answer="Final: A. Left.\nSupport: the lane ends")
    assert evaluate(Recited("Final: A\nSupport: x", "A"), [structured] * 4).row("planning").schema_valid == 0.5


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (sample(answer=None), "f.json, record 1: no answer to score against"),
        (sample(answer="Upwards."), "f.json, record 1: a choice question whose answer states no class: 'Upwards.'"),
        (sample("Is it wet?", "Damp.", "yesno"), "a yesno question whose answer states no class"),
        (sample("Where?", None, "open"), "no answer to score against"),
    ],
)
def test_samples_that_cannot_be_scored_fail_before_anything_is_asked(faulty: Sample, message: str) -> None:
    answerer = Recited("A")
    with pytest.raises(DataError) as raised:
        evaluate(answerer, [sample(), faulty])
    assert message in str(raised.value)
    assert answerer.pictures is None


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="none of 1 samples is a choice"):
        evaluate(Recited("A"), [sample("What now?", "Brake.", "open")])


def test_progress_is_passed_on() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(Recited("A"), [sample()] * 3, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_table_has_a_row_per_group() -> None:
    rows = evaluate(Recited(*TEXTS), MIXED).rows()
    assert [row[0] for row in rows] == ["all", "perception", "  wet", "planning", "  way"]
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[3][1:3] == ("4", "0.500")


def test_the_written_report_reads_back(tmp_path: Path) -> None:
    report = evaluate(Recited(*TEXTS), MIXED)
    write_report(report, tmp_path / "out")
    value = json.loads((tmp_path / "out/report.json").read_text())
    assert value == json.loads(json.dumps(report.to_json()))
    assert value["scores"][0]["interval"] == list(report.scores[0].interval)
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert lines[3] == {
        "source": "f.json, record 1",
        "capability": "planning",
        "topic": "way",
        "kind": "choice",
        "question": WAY,
        "answer": "A",
        "prediction": "hm",
        "parsed": None,
        "correct": False,
    }
    assert lines[7]["correct"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.jsonl", "report.json"]


def test_a_folder_that_is_neither_bundle_nor_checkpoint_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found neither"):
        open_answerer(tmp_path)
    with pytest.raises(UsageError, match="found neither"):
        open_answerer(tmp_path / "none")


@pytest.mark.parametrize(
    ("paths", "cameras", "expected"),
    [
        (("samples/CAM_BACK/1.jpg", "x__CAM_FRONT_LEFT__2.jpg"), (), ("CAM_BACK", "CAM_FRONT_LEFT")),
        (("a.jpg",), (), ("CAM_FRONT",)),
        (("CAM_BACK/1.jpg", "CAM_FRONT/2.jpg"), ("CAM_FRONT", "CAM_BACK"), ("CAM_FRONT", "CAM_BACK")),
        (("a.jpg", "b.jpg"), ("CAM_FRONT", "CAM_BACK"), ("CAM_FRONT", "CAM_BACK")),
        (("a.jpg", "CAM_BACK/b.jpg"), ("CAM_FRONT", "CAM_BACK"), ("CAM_FRONT", "CAM_BACK")),
    ],
)
def test_camera_names(paths: tuple[str, ...], cameras: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert with_cameras(Sample("f", "planning", "q", "a", tuple(map(Path, paths))), cameras).cameras == expected


def test_unknown_cameras_are_refused() -> None:
    with pytest.raises(DataError, match="cannot tell the cameras of 2 images"):
        with_cameras(Sample("f", "planning", "q", "a", (Path("a.jpg"), Path("b.jpg"))), ())


@pytest.mark.e2e
def test_readers_and_metrics_do_without_torch() -> None:
    code = (
        "import sys; import drivekd.evaluate, drivekd.evaluate.evaluation, drivekd.data.readers, drivekd.data.checks.validate, "
        "drivekd.data.writers.convert, drivekd.data.checks.overlap; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
