"""The same answers by the rules of the upstream toolkits, defects included; never mixed with ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from drivekd.answered import Answered
from drivekd.data.answer_forms import options
from drivekd.evaluate.metrics import match_tags
from drivekd.evaluate.metrics.drivebench import upstream_choice
from drivekd.evaluate.metrics.drivelm import Asked, DriveLMScore, drivelm_score
from drivekd.evaluate.metrics.tags import TagCounts
from drivekd.evaluate.scored import label_class, scored_from
from drivekd.evaluate.scoring import why_not_scored
from drivekd.sample import CAPABILITIES, Sample
from drivekd.tags import coordinate_style, pixel_tags

NEEDS_JUDGE = "needs a judge"


@dataclass(frozen=True)
class DriveLMBesideOurs:
    """score: by upstream's rules. accuracy, tag_f1: ours on all tag 0 and tag 3 answers, without the gate; None without any.

    n: of how many answers ours are, which upstream's gate makes more than its own: accuracy and tag_f1 -> count.
    """

    score: DriveLMScore
    accuracy: float | None
    tag_f1: float | None
    n: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """final, match and judge are null: they need a judge's marks."""
        upstream = {**asdict(self.score), "judge": None, "match": None, "final": None, "why_null": NEEDS_JUDGE}
        return {"upstream": upstream, "ours": {"accuracy": self.accuracy, "tag_f1": self.tag_f1, "n": dict(self.n)}}

    def rows(self) -> list[list[str]]:
        """Under DRIVELM_HEADER."""
        score, parts = self.score, self.score.language_parts
        accuracy = [_cell(score.accuracy), str(self.n["accuracy"]), _cell(self.accuracy)]
        match = [_cell(score.f1), str(self.n["tag_f1"]), _cell(self.tag_f1)]
        rows = [["accuracy (tag 0)", str(score.n["accuracy"]), *accuracy]]
        rows.append(["judge (tag 1)", str(score.n["judge"]), NEEDS_JUDGE, "", ""])
        rows.append(["language (tag 2)", str(score.n["language"]), _cell(score.language), "", ""])
        rows += [[f"  {name}", "", _cell(value), "", ""] for name, value in parts.items()]
        rows.append(["match, F1 half (tag 3)", str(score.n["match"]), *match])
        rows += [["match", "", NEEDS_JUDGE, "", ""], ["final score", "", NEEDS_JUDGE, "", ""]]
        rows.append(["gated away", str(score.gated), "", "", ""])
        return rows + [[reason, str(count), "", "", ""] for reason, count in score.left_out.items()]


DRIVELM_HEADER = ["DriveLM", "n, gated", "upstream's rule", "n, all", "ours"]


def drivelm_beside_ours(
    samples: Sequence[Sample], as_written: Sequence[Sample], answered: Mapping[int, Answered]
) -> DriveLMBesideOurs:
    """samples: all records; as_written: the same with their texts as in the file; answered: by place among them."""
    texts = _in_pixels({place: one.given.text for place, one in answered.items()})
    records = _in_pixels(dict(enumerate(_texts_of(as_written))))
    asked = [
        Asked(f"{sample.scene}_{sample.frame}", sample.tag, records[2 * place], records[2 * place + 1], texts.get(place))
        for place, sample in sorted(enumerate(samples), key=lambda pair: _drivelm_order(pair[1]))
    ]
    scored = scored_from([one for one in answered.values() if why_not_scored(one.sample) is None])
    choices = [one.correct for one in scored if 0 in one.sample.tag and not one.is_open]
    counts = [match_tags(one.predicted_tags, one.true_tags) for one in scored if 3 in one.sample.tag and one.true_tags]
    return DriveLMBesideOurs(
        drivelm_score(asked),
        sum(choices) / len(choices) if choices else None,
        sum(counts, TagCounts()).f1 if counts else None,
        {"accuracy": len(choices), "tag_f1": len(counts)},
    )


def _texts_of(samples: Sequence[Sample]) -> list[str]:
    """Question and true answer of each, in turn."""
    return [text for sample in samples for text in (sample.question, sample.answer or "")]


def _in_pixels(texts: Mapping[int, str]) -> dict[int, str]:
    """One writer's texts as upstream reads them: in pixels. In 0 to 1 every two points would lie nearer than 16."""
    if coordinate_style(texts.values()) == "pixel":
        return dict(texts)
    return {place: pixel_tags(text) for place, text in texts.items()}


def _drivelm_order(sample: Sample) -> tuple[int, ...]:
    """By the index in the id, which counts perception, prediction, planning, behavior; frames stay apart by their name."""
    index = sample.id.rpartition("_")[2]
    return (int(index),) if index.isdigit() else (0,)


@dataclass(frozen=True)
class DriveBenchRow:
    """Choice questions of a capability ("" = all): share right by upstream's rule and by ours; differ: read as another letter."""

    capability: str
    n: int
    upstream: float
    ours: float
    differ: int


DRIVEBENCH_HEADER = ["DriveBench choices", "n", "upstream's rule", "ours", "read differently"]


def drivebench_beside_ours(answered: Sequence[Answered]) -> list[DriveBenchRow]:
    """Of all choice questions, then by capability."""
    choices = [one for one in answered if one.sample.answer_form == "choice" and label_class(one.sample) is not None]
    rows = []
    for capability in ("", *CAPABILITIES):
        group = [one for one in scored_from(choices) if capability in ("", one.sample.capability)]
        if group:
            read = [upstream_choice(one.given.text, options(one.sample.question)) for one in group]
            right = sum(letter == (one.item and one.item.answer) for letter, one in zip(read, group, strict=True))
            differ = sum(letter != one.parsed for letter, one in zip(read, group, strict=True))
            ours = sum(one.correct for one in group)
            rows.append(DriveBenchRow(capability, len(group), right / len(group), ours / len(group), differ))
    return rows


def drivebench_cells(rows: Sequence[DriveBenchRow]) -> list[list[str]]:
    """Under DRIVEBENCH_HEADER."""
    return [[row.capability or "all", str(row.n), _cell(row.upstream), _cell(row.ours), str(row.differ)] for row in rows]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
