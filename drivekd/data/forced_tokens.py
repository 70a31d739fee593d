"""Which tokens of a structured answer a model must know: those that the runtime's grammar does not write by itself.

Keys, brackets and the rest of a name cost the car no decision (runtime/answers/grammar.py), so training spends no loss on them:
else a dozen words that decide would share their sample's mean with thrice as many that cannot be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from drivekd.chat import PromptEncoder
from drivekd.runtime.answers.grammar import Constraint, Grammars
from drivekd.runtime.answers.schemas import default_schemas
from drivekd.sample import Sample

KEPT = 1 << 14  # answers whose tokens are kept


def is_structured(sample: Sample) -> bool:
    """Whether what the sample teaches is its structured answer."""
    return sample.structured is not None and sample.answer == sample.structured


class ForcedTokens:
    """Knows the grammars over one tokenizer; compiled when first asked. Raises RunnerError: llguidance cannot read it."""

    def __init__(self, prompts: PromptEncoder) -> None:
        tokenizer = prompts.tokenizer
        self._grammars = Grammars(
            tokenizer.to_str().encode(), tokenizer.get_vocab_size(), prompts.end_of_turn_id, default_schemas(())
        )
        self._of = lru_cache(maxsize=KEPT)(self._forced)

    def of(self, sample: Sample, ids: Sequence[int]) -> tuple[bool, ...]:
        """Of each token of a structured sample's answer, its end of turn among them: whether the grammar writes it."""
        return self._of(sample.capability, sample.cameras, tuple(ids))

    def _forced(self, capability: str, cameras: tuple[str, ...], ids: tuple[int, ...]) -> tuple[bool, ...]:
        constraint = self._grammars.constraint(capability, cameras)
        forced: list[bool] = []
        written = constraint.opening()
        while len(forced) < len(ids) and written == list(ids[len(forced) : len(forced) + len(written)]):
            forced += [True] * len(written)
            if constraint.finished or not _accepted(constraint, ids[len(forced)]):
                break
            forced.append(False)
            written = constraint.forced()
        return (*forced, *[False] * (len(ids) - len(forced)))  # the end, or tokens that the grammar would cut otherwise


def _accepted(constraint: Constraint, token: int) -> bool:
    if not constraint.allows(token):
        return False
    constraint.accept(token)
    return True
