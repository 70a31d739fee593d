"""The evaluator on an answerer whose texts are known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from drivekd.answered import Answered, Given
from drivekd.errors import DataError, UsageError
from drivekd.evaluate import COLUMNS, evaluate, write_report
from drivekd.evaluate.answering import CLEAN, Budgets, OnAnswer, Pictures, open_answerer
from drivekd.evaluate.answering.bundle_answerer import with_cameras
from drivekd.evaluate.scores import caveats, metric_cells
from drivekd.evaluate.scoring import score
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
TEXTS = ("A. Left.", "B. Right.", "B", "hm", "No.", "Yes.", "Yes.", f"{TAG} <c2,CAM_FRONT,4.32,0.8>", "Slow down, brake.")


def test_scores_by_hand() -> None:
    answerer = Recited(*TEXTS)
    report = evaluate(answerer, MIXED)
    assert answerer.asked == MIXED
    assert report.not_asked == {}

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
    (note,) = [note for note in caveats(report) if "majority" in note]
    assert "the majority of wet was counted in the scored records themselves" in note, "planning's came from the reference"
    assert "way, wet was counted" in caveats(evaluate(Recited(*TEXTS), MIXED))[-1]
    assert not [note for note in caveats(evaluate(Recited(*TEXTS), MIXED, reference=MIXED)) if "majority" in note]


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
    ("faulty", "reason"),
    [
        (sample(answer=None), "without an answer to score against"),
        (sample("Where?", None, "open"), "without an answer to score against"),
        (sample(answer="Upwards."), "choice questions whose true answer does not state one offered letter"),
        (sample(answer="A, B"), "choice questions whose true answer does not state one offered letter"),
        (sample(answer="C"), "choice questions whose true answer does not state one offered letter"),
        (sample("Is it wet?", "Damp.", "yesno"), "yesno questions whose true answer does not state yes or no"),
    ],
)
def test_samples_that_cannot_be_scored_are_counted_by_reason_and_not_asked(faulty: Sample, reason: str) -> None:
    answerer = Recited("A")
    report = evaluate(answerer, [sample(answer="A"), faulty, faulty])
    assert len(answerer.asked) == 1
    assert report.not_asked == {reason: 2}
    with pytest.raises(DataError, match=f"none of 1 samples can be scored: 1 {reason}, such as f.json, record 1"):
        evaluate(answerer, [faulty])


def test_every_labelled_record_is_scored_by_something() -> None:
    report = evaluate(Recited(*TEXTS), MIXED)
    assert {(row.metric, row.n) for row in report.metrics if row.capability == "planning"} == {
        ("accuracy", 4),
        ("action_exact", 1),
        ("action_f1", 1),
        ("bleu_1", 1),
        ("rouge_l", 1),
        ("words", 5),
    }
    assert {row.metric for row in report.metrics if row.capability == "perception"} >= {
        "tag_f1",
        "first_object",
        "balanced_accuracy",
    }
    assert report.metric("action_f1", "planning").value == pytest.approx(2 / 3), "slow and brake against brake"
    assert report.metric("accuracy").value == report.scores[0].accuracy
    assert report.metric("accuracy").interval == report.scores[0].interval
    assert "pycocoevalcap" in report.implementations["language"]
    with pytest.raises(KeyError, match="no rouge_l of all answers"):
        report.metric("rouge_l")


def test_actions_are_of_plans_alone() -> None:
    moving = sample("What does it do?", "It is turning left.", "open", "reasoning")
    assert not [row for row in evaluate(Recited("It stops."), [moving]).metrics if row.metric.startswith("action")]


def test_without_pycocoevalcap_the_report_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.evaluate.metrics.language.is_available", lambda: False)
    report = evaluate(Recited(*TEXTS), MIXED)
    assert report.missing == {"language": "needs pycocoevalcap: pip install 'drivekd[eval]'"}
    assert not [row for row in report.metrics if row.metric.startswith(("bleu", "rouge", "cider"))]


def test_cut_answers_are_counted_by_capability() -> None:
    answered = [
        Answered(sample(answer="A"), Given("A", "length")),
        Answered(sample(answer="A"), Given("A")),
        Answered(yes_no("No.", "s"), Given("No", "length", 3)),
    ]
    report = score(answered, answerer="a", digest="d")
    assert report.truncated == {"planning": 1, "perception": 1}
    assert report.metric("tokens").value == 1.0


def test_scores_with_and_without_what_was_trained_on() -> None:
    answered = [Answered(sample(answer="A", scene=f"s{index}"), Given("A" if index < 6 else "B")) for index in range(12)]
    assert score(answered, answerer="a", digest="d").overlap is None
    seen = [index < 6 for index in range(12)]
    report = score(answered, answerer="a", digest="d", overlapping=seen, overlap_with="train.json")
    assert report.overlap is not None
    assert (report.overlap.against, report.overlap.n, report.overlap.marked) == ("train.json", 12, 6)
    assert report.metric("accuracy").value == 0.5
    assert [row.value for row in report.overlap.metrics if (row.metric, row.capability) == ("accuracy", "")] == [0.0]
    everything = score(answered, answerer="a", digest="d", overlapping=[True] * 12)
    assert everything.overlap is not None
    assert (everything.overlap.scores, everything.overlap.metrics) == ((), ())


def test_pixels_and_normalised_tags_of_one_frame_are_the_same_points() -> None:
    objects = sample("What matters?", "<c1,CAM_BACK,1088.3,497.5>, <c2,CAM_FRONT,1043.2,82.2>", "open", "perception")
    copied = "Look at <c1,CAM_BACK,0.6802,0.5528> and <c2,CAM_FRONT,0.6520,0.0913>."
    report = evaluate(Recited(copied), [objects])
    assert report.metric("tag_f1", "perception").value == 1.0
    assert report.metric("first_object", "perception").value == 1.0
    turned = evaluate(Recited("<c2,CAM_FRONT,0.6520,0.0913>, <c1,CAM_BACK,0.6802,0.5528>"), [objects])
    assert turned.metric("first_object", "perception").value == 0.0
    assert evaluate(Recited(copied.replace("BACK", "FRONT")), [objects]).metric("tag_recall").value == 0.5, "another camera"


def test_tags_that_the_question_names_are_not_found_by_repeating_them() -> None:
    asked = "What of <c1,CAM_FRONT,0.2000,0.3000> and what else?"
    both = sample(asked, f"<c1,CAM_FRONT,0.2000,0.3000> is near, {TAG} is far.", "open", "perception")
    assert evaluate(Recited("<c1,CAM_FRONT,0.2000,0.3000>"), [both]).metric("tag_recall").value == 0.0
    assert evaluate(Recited(f"<c1,CAM_FRONT,0.2000,0.3000> {TAG}"), [both]).metric("tag_f1").value == 1.0
    nearly = f"<c1,CAM_FRONT,0.2010,0.3010> {TAG}"
    assert evaluate(Recited(nearly), [both]).metric("tag_precision").value == 1.0, "2.5 px off it is the named one still"
    alone = sample(asked, "<c1,CAM_FRONT,0.2000,0.3000> is near.", "open", "perception")
    assert not [row for row in evaluate(Recited("x"), [alone]).metrics if row.metric.startswith("tag")]


def test_progress_is_passed_on() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(Recited("A"), [sample()] * 3, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_table_has_a_row_per_group() -> None:
    rows = evaluate(Recited(*TEXTS), MIXED).rows()
    assert [row[0] for row in rows] == ["all", "perception", "  wet", "planning", "  way"]
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[3][1:3] == ("4", "0.500")


def test_an_interval_without_an_end_is_a_dash() -> None:
    rows = metric_cells(evaluate(Recited("Slow down."), [sample("What now?", "Brake.", "open", scene="one")] * 2))
    assert {row[0]: row[4] for row in rows}["words"] == "-", "one scene says nothing of how long others' answers are"


def test_the_written_report_reads_back(tmp_path: Path) -> None:
    report = evaluate(Recited(*TEXTS), MIXED)
    write_report(report, tmp_path / "out")
    value = json.loads((tmp_path / "out/report.json").read_text())
    assert value == json.loads(json.dumps(report.to_json()))
    assert value["scores"][0]["interval"] == list(report.scores[0].interval)
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 9
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
