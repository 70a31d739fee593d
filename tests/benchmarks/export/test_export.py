"""The benchmarks of export and decoding run from the command line, at a size for seconds; their figures mean nothing here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open

if TYPE_CHECKING:
    from command_fixtures import RunBenchmark, SmallExport

pytestmark = pytest.mark.e2e

TOKENS = 6


def test_export_tells_seconds_memory_sizes_and_parity(small_export: SmallExport) -> None:
    bundle, exported = small_export.bundle, small_export.row
    assert exported["bundle_bytes"] == sum(path.stat().st_size for path in bundle.iterdir())
    stages = {name: found["seconds"] for name, found in exported["stages"].items()}
    assert {"load_source", "write_graphs", "convert", "measure_parity", "rest"} <= set(stages)
    assert sum(stages.values()) == pytest.approx(exported["export_s"])  # nothing twice, nothing left out
    assert stages["rest"] >= 0
    assert exported["seconds"] >= exported["export_s"]  # the process, imports included
    assert exported["peak_rss_mb"] == max(found["peak_mb"] for found in exported["stages"].values()) > 0
    assert exported["worst_parity"]["passed"]


def test_decode_times_a_bundle_in_a_process_of_its_own(small_export: SmallExport, run_benchmark: RunBenchmark) -> None:
    printed = run_benchmark(
        *("-m", "benchmarks.runtime.decode", "--work", small_export.folder, "--bundle", small_export.bundle),
        *("--prompts", "12,20", "--tokens", TOKENS, "--turn", 4, "--repeats", 2, "--threads", 1),
    )
    assert [row["prompt"] for row in printed.rows] == [12, 20]
    for row in printed.rows:
        assert row["timed_steps"] == 2 * TOKENS
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert row["tokens_per_s"] == pytest.approx(1000 / row["p50_ms"])
        assert 0 < row["rss_mb"] <= row["peak_mb"]


def test_bound_decoder_agrees_with_the_session(small_export: SmallExport) -> None:
    """What is timed is what the product computes: same tokens, same logits behind the prompt."""
    from benchmarks.runtime.decode_worker import BoundBundle
    from drivekd.runtime.bundle.reader import read_bundle
    from drivekd.runtime.session.session import Session

    bundle, prompt = small_export.bundle, np.random.default_rng(0).integers(300, 600, 24).tolist()
    bound = BoundBundle(bundle, threads=1)
    tokens = [bound.start(prompt, TOKENS), *(bound.step() for _ in range(TOKENS))]
    with Session(read_bundle(bundle), dialect="gqa", threads=1) as session:
        logits, cache = session.decoder.read([prompt], session.decoder.empty_cache(1, room=len(prompt) + TOKENS))
        # one engine, one graph and one thread: only buffers differ
        np.testing.assert_array_equal(bound.logits, logits[0])
        for token in tokens[:-1]:
            assert token == logits[0].argmax()
            logits, cache = session.decoder.step([token], cache)
        assert tokens[-1] == logits[0].argmax()


def test_a_sequence_starts_from_nothing(small_export: SmallExport) -> None:
    from benchmarks.runtime.decode_worker import BoundBundle

    bound = BoundBundle(small_export.bundle, threads=1)
    prompt = list(range(300, 320))
    first = [bound.start(prompt, TOKENS), bound.step(), bound.step()]
    bound.start(list(range(400, 440)), TOKENS)
    assert [bound.start(prompt, TOKENS), bound.step(), bound.step()] == first


def test_language_model_of_the_peer_has_the_same_weights(small_export: SmallExport, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from benchmarks.runtime.decode_peer import save_language_model

    folder = save_language_model(small_export.folder / "small", tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if not name.startswith(("model.", "lm_head."))]  # noqa: SIM118
    whole, alone = (
        AutoModelForImageTextToText.from_pretrained(small_export.folder / "small"),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    ids = {"input_ids": whole.dummy_inputs["input_ids"]}
    expected, found = whole(**ids).logits, alone(**ids).logits
    assert type(alone).__name__ == "Qwen2ForCausalLM"
    np.testing.assert_array_equal(expected.detach().float().numpy(), found.detach().float().numpy())


@pytest.mark.parametrize("entries", [700, 66_500])
def test_tokenizer_has_the_asked_size_and_reads_its_own_text(entries: int) -> None:
    from benchmarks.export.models import TEXTS, make_tokenizer
    from drivekd.models.tiny import SPECIAL_TOKENS

    tokenizer = make_tokenizer(entries, SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == entries
    for text in (*TEXTS, "Zebra crossing: 42 m?"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_weights_of_the_models_are_lively(small_export: SmallExport) -> None:
    """Constants would make parity vacuous: position embeddings, biases and norms all vary."""
    with safe_open(small_export.folder / "small" / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            values = weights.get_tensor(name).float()
            assert values.std() > 0 or "lambda" in name, name


def test_ratio_is_of_turns_that_followed_each_other() -> None:
    """A machine that slows down for both alike does not move it."""
    from benchmarks.runtime.decode import _against

    def run(milliseconds: list[float]) -> dict[str, Any]:
        return {"steps": [one / 1e3 for one in milliseconds], "cpu_s": sum(milliseconds) / 1e3, "prompt_s": 1.0, "tokens": [1]}

    slow_spell = [1, 1, 9, 9, 9, 9, 1, 1]
    found = _against([run([2.0 * one for one in slow_spell])], [run([1.0 * one for one in slow_spell])], 2)
    assert [found[key] for key in ("ratio", "ratio_min", "ratio_max")] == pytest.approx([2, 2, 2])


def test_a_stage_that_is_called_twice_counts_twice() -> None:
    from benchmarks.export.export import _timed

    stages = {"rest": {"seconds": 0.0, "peak_mb": 0.0}}
    nap = _timed("nap", time.sleep, stages)
    nap(0.02)
    nap(0.02)
    assert stages["nap"]["seconds"] >= 0.04
