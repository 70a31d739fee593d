"""What rounding costs in words: perplexity of answers, and how often the next token is the one that the float model would say.

    perplexity = exp(mean over answer tokens of -log p(token | image, question, answer so far))

Both bundles are fed the same answers, token by token, on their own engines: quantized weights, activations and image features
are all in it. Where records are given, the answers are those of frames that nothing was rounded on; else the float model's own,
to the bundle's questions about test pictures, of which little is lost before something is badly wrong.

B questions about one image, N answer tokens, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.images import RGBImage, load_image
from drivekd.processor import Processor
from drivekd.runtime.parity.limits import TIE_MARGIN
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.sampling import top2_margin
from drivekd.runtime.session.triad import branch
from drivekd.sample import Sample

LANGUAGE_HEADER = ["text", "tokens", "perplexity, fp32", "perplexity", "ratio", "next token as fp32"]
BATCH = 4  # questions at once
LONGEST = 96  # tokens of an answer that are looked at
OWN_TOKENS = 48


@dataclass(frozen=True)
class Spoken:
    """Questions about one image, with the tokens [N_i] of their answers, the end of turn included."""

    image: RGBImage
    questions: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Heard:
    """Of each answer token in turn: the logarithm of its probability, the token that is likeliest, and whether by a margin."""

    log_probability: NDArray[np.float64]
    likeliest: NDArray[np.int64]
    clear: NDArray[np.bool_]


@dataclass(frozen=True)
class LanguageRow:
    """text: what was read. agreement: share of tokens whose likeliest successor is the float model's, its ties left out."""

    text: str
    tokens: int
    exact_perplexity: float
    perplexity: float
    agreement: float

    @property
    def ratio(self) -> float:
        """Above 1, quantization cost."""
        return self.perplexity / self.exact_perplexity

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> list[str]:
        """Under LANGUAGE_HEADER."""
        numbers = f"{self.exact_perplexity:.4g}", f"{self.perplexity:.4g}", f"{self.ratio:.4f}", f"{self.agreement:.1%}"
        return [self.text, str(self.tokens), *numbers]


def spoken_records(processor: Processor, samples: Sequence[Sample]) -> list[Spoken]:
    """Labelled samples of one camera each, grouped by their picture. Raises DataError when a picture cannot be read."""
    frames: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        frames.setdefault(sample.images, []).append(sample)
    return [
        Spoken(
            processor.resize(load_image(images[0])),
            tuple(sample.question for sample in frame),
            tuple(tuple(processor.prompts.answer(sample.answer or "")[:LONGEST]) for sample in frame),
        )
        for images, frame in frames.items()
    ]


def own_answers(model: StartedModel, images: Sequence[RGBImage], questions: Sequence[str]) -> list[Spoken]:
    """What the float model says itself, greedily."""
    return [_own_answers(model, image, questions) for image in images]


def _own_answers(model: StartedModel, image: RGBImage, questions: Sequence[str]) -> Spoken:
    logits, cache = branch(model.decoder, model.read([image]), [model.prompts.suffix(question) for question in questions])
    tokens = [logits.argmax(-1)]
    for _ in range(OWN_TOKENS - 1):
        logits, cache = model.decoder.step(tokens[-1].tolist(), cache)
        tokens.append(logits.argmax(-1))
    return Spoken(image, tuple(questions), tuple(map(tuple, np.stack(tokens, axis=1).tolist())))


def listen(model: StartedModel, spoken: Sequence[Spoken]) -> Heard:
    """Feed every answer."""
    parts = [
        part
        for one in spoken
        for start in range(0, len(one.questions), BATCH)
        for part in _heard(model, one.image, one.questions[start : start + BATCH], one.answers[start : start + BATCH])
    ]
    return Heard(
        np.concatenate([part.log_probability for part in parts]),
        np.concatenate([part.likeliest for part in parts]),
        np.concatenate([part.clear for part in parts]),
    )


def _heard(model: StartedModel, image: RGBImage, questions: Sequence[str], answers: Sequence[Sequence[int]]) -> list[Heard]:
    longest = max(map(len, answers))
    tokens = np.asarray([[*answer, *[answer[-1]] * (longest - len(answer))] for answer in answers], np.int64).T  # [N, B]
    found = model.forced_logits([image], questions, tokens)  # [N, B, V]
    steps = [_step(*pair) for pair in zip(found, tokens, strict=True)]  # one by one: [N, B, V] in float64 would be gigabytes
    log_probability, likeliest, clear = (np.stack(values) for values in zip(*steps, strict=True))
    return [
        Heard(log_probability[: len(answer), row], likeliest[: len(answer), row], clear[: len(answer), row])
        for row, answer in enumerate(answers)
    ]


def _step(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits [B, V] and the tokens [B] that followed -> of each row what Heard has."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_probability = np.take_along_axis(shifted, tokens[:, None], -1)[:, 0] - np.log(np.exp(shifted).sum(-1))
    return log_probability, logits.argmax(-1), top2_margin(logits) > TIE_MARGIN


def language_row(text: str, exact: Heard, found: Heard) -> LanguageRow:
    """Both heard the same answers."""
    same = (exact.likeliest == found.likeliest)[exact.clear]
    agreement = float(same.mean()) if same.size else 1.0
    return LanguageRow(text, len(exact.likeliest), _perplexity(exact), _perplexity(found), agreement)


def _perplexity(heard: Heard) -> float:
    return float(np.exp(-heard.log_probability.mean()))
