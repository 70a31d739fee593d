"""What a model was trained on, as far as it is known: the traces beside it, else the records that are given as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drivekd.answered import Answered
from drivekd.data.traces import FILE_NAME, Traces, overlapping, read_traces, traces_of
from drivekd.sample import Sample


@dataclass(frozen=True)
class TrainingData:
    """traces: None where nothing is known. name: where they come from."""

    traces: Traces | None
    name: str = ""

    def marks(self, answered: Sequence[Answered]) -> list[bool] | None:
        """For each answer whether its scene, frame or picture is among the training data; None where that is not known."""
        return None if self.traces is None else overlapping(self.traces, [one.sample for one in answered])


def training_data(model: Path, reference_path: Path | None, reference: Sequence[Sample]) -> TrainingData:
    """The model's data_traces.safetensors; without it the reference file's own traces. Raises DataError for a broken file."""
    if (model / FILE_NAME).is_file():
        return TrainingData(read_traces(model / FILE_NAME), str(model / FILE_NAME))
    if reference_path is not None:
        return TrainingData(traces_of(reference), str(reference_path))
    return TrainingData(None)
