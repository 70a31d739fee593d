"""A Qwen2 tokenizer in two files, vocab.json and merges.txt, as OpenGVLab's original layout has it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from drivekd.models.tiny import SPECIAL_TOKENS

CORPUS = ["What's the light? It is RED, isn't it?  No: 3 cars;\n\n  12.5 m ahead.\tÜber die Straße 前方红灯"] * 20


def qwen2_like_tokenizer() -> Tokenizer:
    """A BPE of bytes and merges alone, as vocab.json and merges.txt hold it; special tokens stand behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_slow_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, and no tokenizer.json."""
    model = json.loads(qwen2_like_tokenizer().to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(len(model["vocab"]) + i): {"content": token, **flags} for i, token in enumerate(SPECIAL_TOKENS)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": "{{ messages[0]['content'] }}"}), encoding="utf-8"
    )
