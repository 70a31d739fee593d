"""Calls and a whole frame, for any runner of small_bundle's decoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from drivekd.runtime.bundle.reader import Bundle
from drivekd.runtime.decoder.concat import ConcatDecoder
from drivekd.runtime.decoder.embedding import embedding_from_bytes
from drivekd.runtime.engine.runner import Runner

DECODER = "decoder.concat"


def decoder_of(runner: Runner, bundle: Bundle) -> ConcatDecoder:
    manifest = bundle.manifest
    table = embedding_from_bytes(bundle.files["embedding.safetensors"], manifest.embedding, manifest.model, "here")
    return ConcatDecoder(runner, table, manifest.model, manifest.graphs[DECODER])


def feeds(seq: int, past: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kv = {f"past_key_values.0.{part}": rng.normal(size=(batch, 1, past, 2)).astype(np.float32) for part in ("key", "value")}
    return {
        "inputs_embeds": rng.normal(size=(batch, seq, 4)).astype(np.float32),
        "attention_mask": np.ones((batch, past + seq), np.int64),
        "position_ids": np.zeros((batch, seq), np.int64),
        **kv,
    }


def frame(runner: Runner, bundle: Bundle) -> list[Any]:
    decoder = decoder_of(runner, bundle)
    _, cache = decoder.read([[1, 2, 3, 4, 5]], decoder.empty_cache())
    _, cache = decoder.read([[6, 7]], cache)
    logits, rows = decoder.read([[1], [2, 3, 4], [5, 6]], cache.select([0, 0, 0]))
    found = [logits]
    for step in range(4):
        logits, rows = decoder.step([step, 1, 7], rows)
        found.append(logits)
    logits, rows = decoder.step([2, 3], rows.compact([0, 2]))
    return [*found, logits, *(tensor for row in range(2) for tensor in rows.kv(row))]
