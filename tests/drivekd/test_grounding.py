"""A special token that data.grounding_tokens lists is a word like others, in training and in all that comes behind it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import TinyRun

from drivekd.data.checks.validate import validate_file
from drivekd.errors import ConfigError, UsageError
from drivekd.hf_checkpoint import Checkpoint, load_processor, write_processor

TOKENS = {"internvl": "<|endoftext|>", "qwen2_5_vl": "<|video_pad|>"}  # special, and in no prompt of pictures, as <box> is


@pytest.fixture
def token(family_run: TinyRun) -> str:
    return TOKENS[Checkpoint.open(family_run.student).model_type]


def test_a_listed_token_is_a_word_with_the_same_id(family_run: TinyRun, token: str, tmp_path: Path) -> None:
    stored = Checkpoint.open(family_run.student)
    text = f"A red {token} car."
    with pytest.raises(UsageError, match="contains the chat marker"):
        load_processor(stored).prompts.answer(text)
    (tmp_path / "written").mkdir()
    write_processor(stored.with_grounding([token]), tmp_path / "written")
    shutil.copyfile(family_run.student / "config.json", tmp_path / "written" / "config.json")
    for checkpoint in (stored.with_grounding([token]), Checkpoint.open(tmp_path / "written")):
        prompts = load_processor(checkpoint).prompts
        ids = prompts.answer(text)
        assert stored.files.tokenizer.token_to_id(token) in ids
        assert prompts.decode(ids) == text
        assert prompts.suffix("Is it red?") == load_processor(stored).prompts.suffix("Is it red?")
        with pytest.raises(UsageError, match="chat marker '<|im_end|>'".replace("|", r"\|")):
            prompts.answer("A <|im_end|>")


def test_transformers_takes_the_written_tokenizer_alike(family_run: TinyRun, token: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_processor(Checkpoint.open(family_run.student).with_grounding([token]), tmp_path)
    shutil.copyfile(family_run.student / "config.json", tmp_path / "config.json")
    settings = tmp_path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text(encoding="utf-8")).items() if value != token}
    settings.write_text(json.dumps(kept), encoding="utf-8")  # as padding it would be special by another key
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(f"A red {token} car.", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"A red {token} car."


@pytest.mark.parametrize(
    ("listed", "message"), [("<box>", "has no added token '<box>'"), ("<|im_end|>", "own prompt"), ("<|im_start|>", "own prompt")]
)
def test_a_token_that_is_none_or_that_the_prompt_needs_is_refused(family_run: TinyRun, listed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.grounding_tokens: ") as raised:
        load_processor(Checkpoint.open(family_run.student).with_grounding([listed]))
    assert message in str(raised.value)


@pytest.mark.numerics
def test_a_run_that_lists_it_trains_and_hands_it_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    from drivekd.distill.training.train import train
    from drivekd.errors import DataError

    token = TOKENS["internvl"]
    records = json.loads((tiny_run.folder / "train.json").read_text(encoding="utf-8"))
    records[0]["messages"][1]["content"] += f" {token}"
    marked = tmp_path / "marked.json"
    marked.write_text(json.dumps(records), encoding="utf-8")
    kinds = {t.kind for t in validate_file(marked, image_root=tiny_run.folder, checkpoint=tiny_run.student).problems}
    assert kinds == {"chat marker"}
    settings = [f"data.train=[{marked}]", f"data.image_root={tiny_run.folder}", "training.steps=1"]
    with pytest.raises(DataError, match=r"marked\.json, record 1: the answer contains the chat marker"):
        train(tiny_run.config(*settings), tmp_path / "refused")
    final = train(tiny_run.config(*settings, f"data.grounding_tokens=['{token}']"), tmp_path / "run").final
    assert load_processor(final).prompts.find_marker(f"A {token}") is None
    assert validate_file(marked, image_root=tiny_run.folder, checkpoint=final).ok
