"""An evaluation's questions are asked, and every answer is on disk as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from drivekd.answered import Answered, Given
from drivekd.errors import DataError, DrivekdError
from drivekd.log import ProgressLine
from drivekd.sample import Sample

from .answering import Answerer, Pictures
from .predictions import AnswerFile, Line, Shard, answers_in

_OF_THE_RECORD = ("question", "answer", "answer_form", "capability", "id", "scene", "frame")


def ask(
    answerer: Answerer, samples: Mapping[int, Sample], pictures: Sequence[Pictures], folder: Path, shard: Shard
) -> tuple[list[Line], int]:
    """Ask this shard's questions that the folder has no answer to yet, under every picture setting.

    samples: by their index in the file. folder: claimed by this evaluation's Identity. Returns all answers of the folder, of all
    shards, and how many questions are still open. Raises DrivekdError on Ctrl-C: what was answered is kept; DataError for a line
    in the folder that says something else of its record than the file does.
    """
    indices = list(samples)
    mine = [indices[place] for place in shard.part_of(list(samples.values()))]
    with AnswerFile(folder / shard.file) as file:
        known = {line.key for line in _answers(folder, samples)}
        todo = [(one, [index for index in mine if (one.setting, index) not in known]) for one in pictures]
        progress = _Progress(sum(len(open_ones) for _, open_ones in todo))
        try:
            for one, open_ones in todo:
                if open_ones:
                    _ask_setting(answerer, {index: samples[index] for index in open_ones}, one, file, progress)
        except KeyboardInterrupt as error:
            raise DrivekdError(
                f"interrupted after {progress.done} of {progress.total} answers; they are kept in {file.path}, "
                "and the same command goes on there"
            ) from error
        finally:
            progress.close()
    wanted = {(one.setting, index) for one in pictures for index in indices}
    lines = [line for line in _answers(folder, samples) if line.key in wanted]
    return lines, len(wanted) - len(lines)


def _answers(folder: Path, samples: Mapping[int, Sample]) -> list[Line]:
    """The folder's answers beside the records of the file, which decide what is right. An edited or foreign line is refused."""
    return [
        _beside_its_record(line, samples[line.index], folder) if line.index in samples else line for line in answers_in(folder)
    ]


def _beside_its_record(line: Line, sample: Sample, folder: Path) -> Line:
    for name in _OF_THE_RECORD:
        written, there = getattr(line.answered.sample, name), getattr(sample, name)
        if written != there:
            raise DataError(
                f"{folder}: the answer with index {line.index} is to {name} {str(written)[:80]!r}, but {sample.source} has "
                f"{str(there)[:80]!r}; take this line out of predictions.jsonl, or give a new --out"
            )
    return replace(line, answered=replace(line.answered, sample=sample))


def _ask_setting(
    answerer: Answerer, samples: Mapping[int, Sample], pictures: Pictures, file: AnswerFile, progress: _Progress
) -> None:
    indices = list(samples)

    def keep(place: int, given: Given) -> None:
        index = indices[place]
        file.add(Line(index, Answered(samples[index], given, pictures.setting, pictures.severity)))
        progress.count(pictures.setting)

    answerer.answers(list(samples.values()), pictures=pictures, on_answer=keep)


class _Progress:
    """Of the questions that this process asks."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._began_s = time.monotonic()
        self._line = ProgressLine()

    def count(self, setting: str) -> None:
        self.done += 1
        rate = self.done / max(time.monotonic() - self._began_s, 1e-9)
        left_min = (self.total - self.done) / rate / 60
        self._line.show(
            f"{setting}: {self.done}/{self.total} answers  {rate:.1f}/s  {left_min:.1f} min left", final=self.done == self.total
        )

    def close(self) -> None:
        self._line.close()
