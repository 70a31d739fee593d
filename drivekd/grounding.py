"""Tokens such as `<box>` that a tokenizer calls special and that answers may hold (data.grounding_tokens).

A special token within a text is a chat marker: refused where a prompt is made, and left out where an answer is decoded. Training
that lists one makes it an ordinary token of the student's own tokenizer, which travels with the weights: evaluation, export and
runtime know nothing more about it. Its id stays, so nothing else changes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import Tokenizer

from drivekd.chat import ChatFormat
from drivekd.errors import ConfigError


def ordinary_tokens(tokenizer: Tokenizer, tokens: Collection[str], source: str) -> Tokenizer:
    """A copy in which these tokens are special no more. Raises ConfigError naming one that the tokenizer does not have."""
    value = json.loads(tokenizer.to_str())
    added = {entry["content"]: entry for entry in value.get("added_tokens", ())}
    for token in tokens:
        if token not in added:
            known = ", ".join(sorted(added)[:12])
            raise ConfigError(f"data.grounding_tokens: the tokenizer of {source} has no added token {token!r}; it has {known}")
        added[token]["special"] = False
    return Tokenizer.from_str(json.dumps(value))


def check_not_needed(tokens: Collection[str], chat: ChatFormat, source: str) -> None:
    """Raises ConfigError naming a token that the prompt itself is made of."""
    prompt = chat.prefix(1) + chat.suffix("") + chat.end_of_turn
    for token in tokens:
        if not token or token in prompt:
            raise ConfigError(f"data.grounding_tokens: {token!r} is a token of {source}'s own prompt; an answer cannot hold it")


def ordinary_tokenizer_config(config: Mapping[str, Any], tokens: Collection[str]) -> dict[str, Any]:
    """tokenizer_config.json of a tokenizer whose tokens were made ordinary, so that transformers takes them alike."""
    decoder = {
        number: {**entry, "special": entry.get("special", False) and entry.get("content") not in tokens}
        for number, entry in config.get("added_tokens_decoder", {}).items()
    }
    lists = {
        key: [token for token in value if (token.get("content") if isinstance(token, dict) else token) not in tokens]
        for key in ("additional_special_tokens", "extra_special_tokens")
        if isinstance(value := config.get(key), list)
    }
    return {**config, **({"added_tokens_decoder": decoder} if decoder else {}), **lists}
