"""The reference against the bundle's own runtime: same images, same prompts, every output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from drivekd.export.source.reference import NUM_STEPS, Generation, Reference
from drivekd.runtime.answers.deadline import Deadline
from drivekd.runtime.bundle.graph_contract import present_names
from drivekd.runtime.decoder.protocol import Cache
from drivekd.runtime.parity.limits import TIE_MARGIN
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.sampling import top2_margin
from drivekd.runtime.session.triad import branch, decode

from .table import ParityRow, parity_row

NO_TOKEN = -1  # stops nothing: parity compares a fixed number of steps
NOTHING = np.zeros(1, np.float32)  # where tokens alone are compared

Judge: TypeAlias = Callable[..., ParityRow]


def measure_parity(reference: Reference, model: StartedModel) -> list[ParityRow]:
    """Compare the reference with a started model: vision, an empty past, chunks, a shared prefix with branches, decoding."""
    return [*_vision_rows(reference, model), *decoder_rows(reference, model)]


def _vision_rows(reference: Reference, model: StartedModel) -> list[ParityRow]:
    """One image alone, and all of them."""
    expected, spec = reference.image_embeds, model.manifest.graphs["vision"]
    rows = []
    for count in (1, len(expected)):
        found = model.prefix.image_embeds(reference.images[:count])
        rows.append(parity_row("vision", spec, f"{count} tile(s)", "image_embeds", expected[:count], found))
    return rows


def decoder_rows(reference: Reference, model: StartedModel) -> list[ParityRow]:
    """The decoder in the model's dialect."""
    judge = partial(parity_row, f"decoder.{model.dialect}", model.manifest.graphs[f"decoder.{model.dialect}"])
    return [*_text_rows(reference, model, judge), *_decode_rows(reference, model, judge)]


def _text_rows(reference: Reference, model: StartedModel, judge: Judge) -> list[ParityRow]:
    """Questions of different lengths without images behind an empty past (one left-padded batch in concat), and in two chunks."""
    sequences = list(map(list, reference.rows))
    found, _ = model.decoder.read(sequences, model.decoder.empty_cache(len(sequences)))
    first, half = sequences[0], len(sequences[0]) // 2
    _, cache = model.decoder.read([first[:half]], model.decoder.empty_cache())
    chunked, _ = model.decoder.read([first[half:]], cache)
    return [
        judge(f"empty past, {len(sequences)} rows", "logits", reference.row_logits, found),
        judge("prefill in two chunks", "logits", reference.row_logits[:1], chunked),
    ]


def _decode_rows(reference: Reference, model: StartedModel, judge: Judge) -> list[ParityRow]:
    """All capabilities on one prefix: prefill, decoding with torch's tokens, and with the runtime's own."""
    expected = np.stack([generation.logits for generation in reference.generations], axis=1)  # [1 + steps, B, V]
    tokens = np.stack([generation.tokens for generation in reference.generations], axis=1)  # [1 + steps, B]
    suffixes = [model.prompts.suffix(question) for question in reference.questions]
    prefix = model.read(reference.images)
    found, cache = _forced(model, prefix, suffixes, tokens)
    agreement = [_agreement(expected[part], found[part].argmax(-1)) for part in (slice(0, 1), slice(1, None))]
    greedy = _greedy_agreement(model, prefix, suffixes, expected)
    return [
        judge(f"{len(suffixes)} questions on one prefix", "logits", expected[:1], found[:1], argmax_agreement=agreement[0]),
        judge(f"{NUM_STEPS} steps", "logits", expected[1:], found[1:], argmax_agreement=agreement[1]),
        *_kv_rows(reference.generations, cache, judge),
        judge(f"{len(expected)} tokens greedy", "tokens", NOTHING, NOTHING, argmax_agreement=greedy),
    ]


def _forced(
    model: StartedModel, prefix: Cache, suffixes: list[list[int]], tokens: NDArray[np.int64]
) -> tuple[NDArray[np.float32], Cache]:
    """Logits [1 + steps, B, V] when each step is fed torch's token, and the cache behind the last."""
    logits, cache = branch(model.decoder, prefix, suffixes)
    steps = [logits]
    for previous in tokens[:-1]:
        logits, cache = model.decoder.step(previous.tolist(), cache)
        steps.append(logits)
    return np.stack(steps), cache


def _kv_rows(truth: Sequence[Generation], cache: Cache, judge: Judge) -> list[ParityRow]:
    """The layer whose K is worst, and the one whose V is."""
    case = f"after {NUM_STEPS} steps"
    found = [cache.kv(row) for row in range(cache.batch)]
    worst: dict[str, ParityRow] = {}
    for index, name in enumerate(present_names(len(found[0]) // 2)):
        for generation, kv in zip(truth, found, strict=True):
            row = judge(case, name, generation.kv[index][0], kv[index])
            part = name.rpartition(".")[2]
            worst[part] = max(worst.get(part, row), row, key=ParityRow.severity)
    return list(worst.values())


def _greedy_agreement(model: StartedModel, prefix: Cache, suffixes: list[list[int]], expected: NDArray[np.float32]) -> float:
    """Of the runtime's own greedy run; behind a tie in torch's logits nothing is compared."""
    logits, cache = branch(model.decoder, prefix, suffixes)
    branches = decode(
        model.decoder,
        logits,
        cache,
        stop_id=NO_TOKEN,
        max_new_tokens=len(expected),
        deadline=Deadline(),
        on_token=lambda row, state: None,
    )
    tokens = np.asarray([state.tokens for state in branches]).T  # [1 + steps, B]
    clear = np.logical_and.accumulate(top2_margin(expected) > TIE_MARGIN, axis=0)
    return _share((tokens == expected.argmax(-1))[clear])


def _agreement(expected: NDArray[np.float32], tokens: NDArray[np.int64]) -> float:
    clear = top2_margin(expected) > TIE_MARGIN
    return _share((tokens == expected.argmax(-1))[clear])


def _share(agreeing: NDArray[np.bool_]) -> float:
    return float(agreeing.mean()) if agreeing.size else 1.0
