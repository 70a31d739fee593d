"""How the shipped models come to JSON: pieces of structured answers become tokens, and the models read free text as before."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from drivekd.demo.pipeline import MODELS
from drivekd.demo.pretraining import JSON_WORDS_LEAST, grown, json_words
from drivekd.hf_checkpoint import Checkpoint
from drivekd.models.internvl import load_model
from drivekd.models.tiny import TinySize, build_tiny, train_tokenizer, write_checkpoint


def test_pieces_of_structured_answers_become_words(tmp_path: Path) -> None:
    plan = {"actions": ["stop"], "reason": "it is red", "probability": None, "complete": True}
    seen = {"objects": [{"camera": "CAM_FRONT", "position": [3, 117], "category": "car", "status": "near"}], "complete": True}
    records = [{"structured": plan}] * JSON_WORDS_LEAST + [{"structured": seen}] * (JSON_WORDS_LEAST - 1) + [{}]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    words = json_words(tmp_path / "a.json")
    assert words[-1] == "Answer as JSON."
    assert '["stop"],' in words and '"it is red",' in words
    assert not any("CAM" in word or word.isdigit() or "near" in word for word in words), "known, or too rare"


def test_a_grown_model_reads_free_text_as_before(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["What now? Stop, it is red."], [], 300)
    size = TinySize(1, 16, 1, 16, attention_heads=2, image_size_px=28)
    write_checkpoint(tmp_path / "old", build_tiny(size, tokenizer, seed=0), tokenizer)
    grown(tmp_path / "old", ['"stop"],', "a", '"it is red",'], tmp_path / "new")  # "a" is a token already
    old, new = (Checkpoint.open(tmp_path / name) for name in ("old", "new"))
    text = "What now? Stop, it is red."
    ids = old.files.tokenizer.encode(text, add_special_tokens=False).ids
    assert new.files.tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert len(new.files.tokenizer.encode('"it is red",', add_special_tokens=False).ids) == 1
    with torch.no_grad():
        before, after = (load_model(one)(input_ids=torch.tensor([ids])).logits for one in (old, new))
    count = before.shape[-1]
    torch.testing.assert_close(after[..., :count], before)
    pieces = old.files.tokenizer.encode('"stop"],', add_special_tokens=False).ids
    torch.testing.assert_close(after[..., count], before[..., pieces].mean(-1))  # the head is the embedding


def test_the_shipped_models_have_one_tokenizer_and_say_what_they_were_taught() -> None:
    texts = {name: (MODELS / name / "tokenizer.json").read_bytes() for name in ("student", "perception", "reasoning", "planning")}
    assert len(set(texts.values())) == 1
    for name in texts:
        contract = json.loads((MODELS / name / "contract.json").read_text(encoding="utf-8"))
        assert contract["structured_instruction"].strip() == "Answer as JSON."
