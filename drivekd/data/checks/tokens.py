"""What a checkpoint's tokenizer and contract say of a record's texts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drivekd.contract import answer_budget
from drivekd.hf_checkpoint import Checkpoint, load_processor
from drivekd.sample import Sample


class TokenCheck:
    """Raises CheckpointError for a checkpoint whose tokenizer or contract cannot be read."""

    def __init__(self, checkpoint: Path) -> None:
        opened = Checkpoint.open(checkpoint)
        self._prompts = load_processor(opened).prompts
        self._budgets = opened.contract.max_new_tokens if opened.contract else {}

    def findings(self, sample: Sample) -> Iterator[tuple[str, str]]:
        """Chat markers, which training refuses; and an answer that the contract's budget would cut."""
        marked = False
        for field, text in (("question", sample.question), ("answer", sample.answer or "")):
            if (marker := self._prompts.find_marker(text)) is not None:
                marked = True
                yield (
                    "chat marker",
                    f"{field}: holds {marker!r}, a special token; take it out, or list it in data.grounding_tokens",
                )
        if not marked and self._budgets and sample.answer is not None:
            budget = answer_budget(self._budgets, sample.capability)
            tokens = len(self._prompts.answer(sample.answer))
            if tokens > budget:
                yield "answer longer than its budget", f"answer: {tokens} tokens; the contract gives {sample.capability} {budget}"
