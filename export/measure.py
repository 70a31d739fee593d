"""Torch against the bundle's own runtime: same images, same prompts, every output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from transformers import InternVLForConditionalGeneration

from drivekd.images import preprocess
from drivekd.runtime.deadline import Deadline
from drivekd.runtime.golden import TIE_MARGIN, golden_images
from drivekd.runtime.kv_cache import KvCache, past_names
from drivekd.runtime.sampling import top2_margin
from drivekd.runtime.session import Session
from drivekd.runtime.triad import branch, decode

from . import reference
from .parity import ParityRow, ParityTable, parity_row, parity_table

NO_TOKEN = -1  # stops nothing: parity compares a fixed number of steps


def measure_parity(model: InternVLForConditionalGeneration, session: Session) -> ParityTable:
    """Compare the model with its exported graphs: vision, left padding, the shared prefix with its branches, decoding."""
    return parity_table([*_vision_rows(model, session), _padding_row(model, session), *_decode_rows(model, session)])


def _pixel_values(session: Session) -> NDArray[np.float32]:
    settings = session.manifest.images
    return np.stack([preprocess(image, settings) for image in golden_images(settings.size_px).values()])


def _vision_rows(model: InternVLForConditionalGeneration, session: Session) -> list[ParityRow]:
    pixel_values = _pixel_values(session)
    expected = reference.image_embeds(model, pixel_values)
    atol = session.manifest.graphs["vision"].atol
    rows = []
    for count in (1, len(pixel_values)):
        found = session.vision.infer({"pixel_values": pixel_values[:count]})["image_embeds"].numpy()
        rows.append(parity_row("vision", f"{count} tile(s)", "image_embeds", expected[:count], found, atol))
    return rows


def _padding_row(model: InternVLForConditionalGeneration, session: Session) -> ParityRow:
    """Questions of different lengths without images, as one left-padded batch with no past."""
    sequences = [session.prompt_ids(0, question) for question in session.questions().values()]
    sequences.append(sequences[0][-5:])
    expected = np.stack([reference.last_logits(model, ids) for ids in sequences])
    found, _ = session.decoder.read(sequences, session.decoder.empty_cache(len(sequences)))
    case = f"prefill, {len(sequences)} rows, left padding"
    return parity_row("decoder", case, "logits", expected, found, session.manifest.graphs["decoder"].atol)


def _decode_rows(model: InternVLForConditionalGeneration, session: Session) -> list[ParityRow]:
    """All capabilities on one prefix: prefill, decoding with torch's tokens, and with the runtime's own."""
    pixel_values, questions = _pixel_values(session), session.questions()
    prompts = [session.prompt_ids(len(pixel_values), question) for question in questions.values()]
    truth = [reference.generate(model, ids, pixel_values) for ids in prompts]
    expected = np.stack([generation.logits for generation in truth], axis=1)  # [1 + steps, B, V]
    tokens = np.stack([generation.tokens for generation in truth], axis=1)  # [1 + steps, B]
    suffixes = [session.prompts.suffix(question) for question in questions.values()]
    prefix = session.prefix.read(list(golden_images(session.manifest.images.size_px).values()), Deadline())
    assert prefix is not None
    found, cache = _forced(session, prefix, suffixes, tokens)
    atol = session.manifest.graphs["decoder"].atol
    branches = f"{len(prompts)} questions on one prefix"
    agreement = [_agreement(expected[part], found[part].argmax(-1)) for part in (slice(0, 1), slice(1, None))]
    return [
        parity_row("decoder", branches, "logits", expected[:1], found[:1], atol, argmax_agreement=agreement[0]),
        parity_row(
            "decoder", f"{reference.NUM_STEPS} steps", "logits", expected[1:], found[1:], atol, argmax_agreement=agreement[1]
        ),
        *_kv_rows(truth, cache, session, atol),
        _greedy_row(session, prefix, suffixes, expected),
    ]


def _forced(
    session: Session, prefix: KvCache, suffixes: list[list[int]], tokens: NDArray[np.int64]
) -> tuple[NDArray[np.float32], KvCache]:
    """Logits [1 + steps, B, V] when each step is fed torch's token, and the cache behind the last."""
    logits, cache = branch(session.decoder, prefix, suffixes)
    steps = [logits]
    for previous in tokens[:-1]:
        logits, cache = session.decoder.step(previous.tolist(), cache)
        steps.append(logits)
    return np.stack(steps), cache


def _kv_rows(truth: list[reference.Generation], cache: KvCache, session: Session, atol: float) -> list[ParityRow]:
    """The worst row of each layer's K and V, padding columns left out."""
    rows = []
    case = f"after {reference.NUM_STEPS} steps"
    for index, past in enumerate(past_names(session.manifest.model.num_layers)):
        found = np.asarray(cache.select(range(cache.batch)).tensors[index])  # [B, K, P, d]
        real = [found[row][:, cache.mask[row] == 1] for row in range(cache.batch)]
        worst = [
            parity_row("decoder", case, past.replace("past_key_values", "present"), generation.kv[index][0], got, atol)
            for generation, got in zip(truth, real, strict=True)
        ]
        rows.append(max(worst, key=lambda row: row.max_abs / row.limit))
    return rows


def _greedy_row(session: Session, prefix: KvCache, suffixes: list[list[int]], expected: NDArray[np.float32]) -> ParityRow:
    """The runtime's own greedy run; behind a tie in torch's logits nothing is compared."""
    logits, cache = branch(session.decoder, prefix, suffixes)
    branches = decode(
        session.decoder,
        logits,
        cache,
        stop_id=NO_TOKEN,
        max_new_tokens=len(expected),
        deadline=Deadline(),
        on_token=lambda row, state: None,
    )
    tokens = np.asarray([state.tokens for state in branches]).T  # [1 + steps, B]
    clear = np.logical_and.accumulate(top2_margin(expected) > TIE_MARGIN, axis=0)
    agreement = _share((tokens == expected.argmax(-1))[clear])
    return ParityRow("decoder", f"{len(expected)} tokens greedy", "tokens", 0.0, 0.0, 1.0, agreement)


def _agreement(expected: NDArray[np.float32], tokens: NDArray[np.int64]) -> float:
    clear = top2_margin(expected) > TIE_MARGIN
    return _share((tokens == expected.argmax(-1))[clear])


def _share(agreeing: NDArray[np.bool_]) -> float:
    return float(agreeing.mean()) if agreeing.size else 1.0
