"""The structured answer that a record holds, as the very text that a grammar lets a model write: compact JSON, `complete` last.

Nothing is invented: what the record does not say is null, and a record that says nothing for its schema has no such answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from drivekd.data.readers.structured import structured_fault, structured_text
from drivekd.errors import DataError
from drivekd.runtime.answers.answer import says_nothing
from drivekd.runtime.answers.schemas import COMPLETE, Schema, default_schemas, with_cameras
from drivekd.sample import Sample

from .asked import Asked
from .pictures import PictureSizes
from .readings import read_facts
from .shape import shaped

Mode = Literal["none", "also", "only"]


def structured_target(sample: Sample, schema: Schema, sizes: PictureSizes) -> str | None:
    """The JSON text of a record's answer under the schema of its capability; None when it holds nothing for it.

    Its own `structured` object, else what its text says (readings.py). A camera is one of the record's.
    Raises DataError naming record, place and fault: the record's own object does not fit the schema, or a picture whose size
    a position needs is none.
    """
    if sample.structured is not None:
        return _own_answer(sample)
    if sample.answer is None:
        return None
    answer = shaped(with_cameras(schema, sample.cameras), read_facts(Asked(sample, sizes)))
    return None if says_nothing(answer) else structured_text({**answer, COMPLETE: True})


def _own_answer(sample: Sample) -> str:
    """Again: a run may have given the record cameras that its reader did not know."""
    answer = json.loads(sample.structured or "{}")
    if (fault := structured_fault(sample.capability, sample.cameras, answer)) is not None:
        raise DataError(f"{sample.source}: structured: {fault}")
    return structured_text(answer)


def taught_samples(samples: Sequence[Sample], mode: Mode, instruction: str) -> list[Sample]:
    """What a run learns from: the records' own question and answer, and behind each the same asked for JSON.

    mode: "none" the free form alone, "only" the structured one. instruction: text behind a question whose answer is JSON.
    Raises DataError as structured_target does.
    """
    if mode == "none":
        return list(samples)
    schemas, sizes = default_schemas(()), PictureSizes()
    taught = []
    for sample in samples:
        text = structured_target(sample, schemas[sample.capability], sizes)
        if mode == "also":
            taught.append(sample)
        if text is not None:
            question = sample.question + instruction
            taught.append(replace(sample, question=question, answer=text, answer_form="open", structured=text))
    return taught
