"""Answers beside what they should be, each read once: letter or word, tags, actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivekd.answered import Answered, Given
from drivekd.data.answer_forms import options
from drivekd.errors import DataError
from drivekd.evaluate.extract import choice, yes_no
from drivekd.evaluate.extract.labels import label_letter, label_yes_no
from drivekd.evaluate.metrics import Item
from drivekd.evaluate.metrics.tags import without_given
from drivekd.sample import Sample
from drivekd.tags import CoordinateStyle, Tag, coordinate_style, find_tags, malformed_tags, normalize_tags


@dataclass(frozen=True)
class Scored:
    """One answered question. item: None for an open one. parsed: the letter, "yes" or "no" that the text states.

    text, answer: as given and true, their tags normalised. true_tags, predicted_tags: those that the question does not name
    itself. malformed: pieces of the text that open a tag and are none.
    """

    sample: Sample
    given: Given
    item: Item | None
    parsed: str | None
    text: str
    answer: str
    true_tags: tuple[Tag, ...]
    predicted_tags: tuple[Tag, ...]
    malformed: int

    @property
    def correct(self) -> bool:
        """Whether the stated class is the true one; False for an open question."""
        return self.item is not None and self.parsed == self.item.answer

    @property
    def is_open(self) -> bool:
        """Whether it has no classes to choose from."""
        return self.item is None

    @property
    def cluster(self) -> str:
        """What is drawn together when resampling."""
        return cluster(self.sample)


def cluster(sample: Sample) -> str:
    """A sample's scene; its frame's pictures where the record names none."""
    return sample.scene or "|".join(map(str, sample.images)) or sample.frame or sample.source


def scored_from(answered: Sequence[Answered]) -> list[Scored]:
    """Read all answers of one model to the questions of one file. Raises DataError when a label states no class.

    The records are one writer of tags and the model another: each has one style, pixel or normalised.
    """
    style_of_records = records_style([one.sample for one in answered])
    style_of_model = coordinate_style(one.given.text for one in answered)
    return [_scored(one, style_of_records, style_of_model) for one in answered]


def records_style(samples: Sequence[Sample]) -> CoordinateStyle:
    """How a file's questions and answers write their tags."""
    return coordinate_style(text for sample in samples for text in (sample.question, sample.answer or ""))


def _scored(one: Answered, style_of_records: CoordinateStyle, style_of_model: CoordinateStyle) -> Scored:
    sample, text, answer = one.sample, one.given.text, _labelled_answer(one.sample)
    named = find_tags(sample.question, style_of_records)
    return Scored(
        sample=sample,
        given=one.given,
        item=None if sample.answer_form == "open" else item_from_sample(sample),
        parsed=parse_answer(text, sample),
        text=normalize_tags(text, style_of_model),
        answer=normalize_tags(answer, style_of_records),
        true_tags=tuple(without_given(find_tags(answer, style_of_records), named)),
        predicted_tags=tuple(without_given(find_tags(text, style_of_model), named)),
        malformed=len(malformed_tags(text, style_of_model)),
    )


def parse_answer(text: str, sample: Sample) -> str | None:
    """The letter, "yes" or "no" that `text` states for this question; None when undecidable or the question is open."""
    if sample.answer_form == "choice":
        return choice(text, sample.question)
    return yes_no(text) if sample.answer_form == "yesno" else None


def item_from_sample(sample: Sample) -> Item:
    """A choice or yes/no sample as a scorable item. Raises DataError when its own answer states no class."""
    answer = label_class(sample)
    if answer is None:
        raise DataError(f"{sample.source}: a {sample.answer_form} question whose answer states no class: {sample.answer!r}")
    return Item(
        topic=f"{sample.capability}/{sample.topic}/{sample.answer_form}",
        classes=_classes(sample),
        answer=answer,
        cluster=cluster(sample),
    )


def label_class(sample: Sample) -> str | None:
    """The class that the true answer of a choice or yes/no sample states, out of those offered; None when none, or several."""
    answer = _labelled_answer(sample)
    found = label_letter(answer, sample.question) if sample.answer_form == "choice" else label_yes_no(answer)
    return found if found in _classes(sample) else None


def _classes(sample: Sample) -> dict[str, str]:
    return options(sample.question) if sample.answer_form == "choice" else {"yes": "yes", "no": "no"}


def _labelled_answer(sample: Sample) -> str:
    if sample.answer is None:
        raise DataError(f"{sample.source}: no answer to score against; evaluate labelled records")
    return sample.answer
