"""Of a structured answer, what the grammar writes is not learnt; what decides is, and nothing of a text is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from structured_cases import ANSWERS
from tiny_run import TinyRun

from drivekd.data.batch import IGNORED_LABEL, Collator
from drivekd.data.forced_tokens import ForcedTokens
from drivekd.data.readers.structured import structured_text
from drivekd.hf_checkpoint import load_processor
from drivekd.sample import CAPABILITIES, Capability, Sample

pytestmark = pytest.mark.numerics


@pytest.fixture
def collate(tiny_run: TinyRun) -> Collator:
    return Collator(load_processor(tiny_run.student))


def structured(run: TinyRun, capability: Capability) -> Sample:
    text = structured_text(ANSWERS[capability])
    images = tuple(run.folder / "images" / f"{number}.png" for number in range(2))
    return Sample("a", capability, "Why?", text, images, cameras=("CAM_FRONT", "CAM_BACK"), structured=text)


def learnt(collate: Collator, sample: Sample) -> str:
    labels = collate([(sample,)]).labels[0]
    return collate.processor.prompts.decode(labels[labels != IGNORED_LABEL].tolist())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_keys_are_written_by_the_grammar_and_words_are_learnt(
    tiny_run: TinyRun, collate: Collator, capability: Capability
) -> None:
    sample = structured(tiny_run, capability)
    kept = learnt(collate, sample)
    assert len(kept) < 0.75 * len(sample.answer or "")
    assert "complete" not in kept
    decides = {
        "perception": ("open", "812", "rholt"),
        "reasoning": ("braking", "closes"),
        "planning": ("sl", "van brakes", "0.75"),  # the rest of slow_down is the grammar's
    }
    assert all(word in kept for word in decides[capability]), kept
    assert collate([(sample,)]).labels[0][-1] == collate.processor.prompts.end_of_turn_id


def test_a_text_is_learnt_whole(tiny_run: TinyRun, collate: Collator) -> None:
    sample = structured(tiny_run, "planning")
    free = replace(sample, structured=None)
    assert learnt(collate, free) == sample.answer
    assert learnt(collate, replace(sample, answer="Stop.")) == "Stop.", "the record has a structured answer, this is not it"


def test_it_marks_what_a_session_would_force(tiny_run: TinyRun, collate: Collator) -> None:
    """Fed the words that decide, the grammar writes the marked ones itself, token by token."""
    prompts, sample = collate.processor.prompts, structured(tiny_run, "planning")
    ids = prompts.answer(sample.answer or "")
    forced = ForcedTokens(prompts).of(sample, ids)
    constraint = ForcedTokens(prompts)._grammars.constraint("planning", sample.cameras)
    written = constraint.opening()
    for token, by_grammar in zip(ids[:-1], forced, strict=False):
        if by_grammar:
            assert written.pop(0) == token
        else:
            assert written == []
            constraint.accept(token)
            written = constraint.forced()
    assert constraint.finished
    assert not forced[-1]


def test_a_camera_of_another_frame_is_learnt_whole(tiny_run: TinyRun, collate: Collator) -> None:
    """No such record is read; a caller's own sample still trains."""
    sample = replace(structured(tiny_run, "perception"), cameras=("CAM_BACK",), images=(tiny_run.folder / "images" / "0.png",))
    kept = learnt(collate, sample)
    assert 'CAM_FRONT","position":[812,455],"category"' in kept
