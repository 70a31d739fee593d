"""A checkpoint's answers as JSON, held to the schemas of a bundle by the car's own grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drivekd.camera_order import camera_names
from drivekd.errors import DataError
from drivekd.processor import Processor
from drivekd.runtime.answers.cut_answers import structured_answer
from drivekd.runtime.answers.grammar import Constraint, Grammars
from drivekd.runtime.answers.schemas import Schema, default_schemas
from drivekd.sample import CAMERAS, Sample

from .generation import Branch


class JsonForm:
    """instruction: what training asked for JSON with, "" = it never did. cameras: of the model, () = those of each record.

    vocab_size: rows of the model's head.
    """

    def __init__(self, processor: Processor, vocab_size: int, *, instruction: str, cameras: Sequence[str]) -> None:
        self.instruction = instruction
        self._schemas: Mapping[str, Schema] = default_schemas(cameras)
        tokenizer = processor.tokenizer.to_str().encode()
        self._grammars = Grammars(tokenizer, vocab_size, processor.prompts.end_of_turn_id, self._schemas)

    def constraint(self, sample: Sample) -> Constraint:
        """Of the sample's capability, its cameras by name. Raises DataError when that has no schema."""
        if sample.capability not in self._schemas:
            raise DataError(
                f"{sample.source}: capability {sample.capability!r} has no schema; {', '.join(self._schemas)} have one"
            )
        unnamed = CAMERAS[: len(sample.images)] if len(sample.images) in (1, len(CAMERAS)) else ()  # as a bundle names them
        return self._grammars.constraint(sample.capability, camera_names(sample) or unnamed)

    def finished(self, branch: Branch, text: str) -> str:
        """Compact JSON that fits the schema; what was cut is null."""
        assert branch.constraint is not None and branch.finish_reason is not None
        return structured_answer(branch.constraint.schema, text, branch.finish_reason)[0]
