"""The recorded run that a bundle carries: replayed on another machine, it says whether the engine there computes the same.

golden.npz:
    images          uint8 [N, H, W, 3]      seeded camera tiles, one below the other where a camera has several
    image_embeds    float32 [N, T, D]
    prompt_ids.C    int64 [P + Q]           per capability C: prefix and question
    tokens          int64 [n, B]            greedy tokens of the B capabilities, end of turn not obeyed
    margins         float32 [n, B]          distance of the two best logits behind each token
"""

from __future__ import annotations

import io
import time
import zipfile
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import BundleError
from drivekd.images import RGBImage, resize
from drivekd.runtime.bundle.npz import npz_bytes
from drivekd.runtime.decoder.protocol import Cache, Logits
from drivekd.runtime.session.model import StartedModel
from drivekd.runtime.session.sampling import greedy, top2_margin
from drivekd.runtime.session.triad import branch

from .limits import MIN_AGREEMENT, MIN_COSINE, TIE_MARGIN

GOLDEN_FILE = "golden.npz"
NUM_IMAGES = 1  # a tile takes a car's computer seconds when it has no GPU, and all tiles take the same way
NUM_TOKENS = 16


@dataclass(frozen=True)
class Replay:
    """vision_cosine: worst of all image tokens. tokens_compared leaves out ties of the recorded run. step_ms: median time of a
    decode step of `rows` rows, here and now; 0 = not taken."""

    vision_cosine: float
    tokens_compared: int
    tokens_agreeing: int
    step_ms: float = field(default=0.0, compare=False)
    rows: int = field(default=0, compare=False)

    @property
    def passed(self) -> bool:
        """At least MIN_AGREEMENT of the compared tokens, and MIN_COSINE everywhere; NaN fails."""
        enough = self.tokens_agreeing >= MIN_AGREEMENT * self.tokens_compared
        return enough and self.vision_cosine >= MIN_COSINE  # a NaN cosine is not >= anything


def golden_images(size_px: int | tuple[int, int], num_images: int = 2, seed: int = 0) -> dict[str, RGBImage]:
    """Seeded smooth images by camera name, uint8 [H, W, 3]; white noise would look alike to a vision tower.

    size_px: of a square, or width and height (ImageForm.tiles_px: a model's input; tile_px: a camera's picture).
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_images, 6, 6, 3), dtype=np.uint8)
    return {f"camera_{i}": resize(image, size_px) for i, image in enumerate(coarse)}


def record_golden(model: StartedModel) -> bytes:
    """Run a model on the seeded images and return golden.npz. Raises RunnerError."""
    tiles, questions = list(golden_images(model.manifest.images.tiles_px, NUM_IMAGES).values()), model.questions()
    logits, cache = _read(model, tiles, questions, NUM_TOKENS)
    tokens, margins = [], []  # n times [B]
    for _ in range(NUM_TOKENS):
        tokens.append(greedy(logits)[0])
        margins.append(top2_margin(logits))
        logits, cache = model.decoder.step(tokens[-1].tolist(), cache)
    arrays: dict[str, NDArray[Any]] = {
        "images": np.stack(tiles),
        "image_embeds": model.prefix.image_embeds(tiles),
        "tokens": np.stack(tokens),
        "margins": np.stack(margins),
        **{f"prompt_ids.{name}": _prompt_ids(model, len(tiles), text) for name, text in questions.items()},
    }
    return npz_bytes(arrays)


def replay_golden(model: StartedModel, data: bytes, source: str) -> Replay:
    """Run the recorded inputs through `model`. Raises BundleError when golden.npz or the tokenizer do not fit the bundle."""
    golden = load_golden(data, source)
    tiles, questions = list(golden["images"]), model.questions()
    for name, text in questions.items():
        if not np.array_equal(golden[f"prompt_ids.{name}"], _prompt_ids(model, len(tiles), text)):
            raise BundleError(f"{source}: this machine's tokenizers library gives other ids for the {name} prompt; update it")
    agreeing, step_ms = _agreeing(model, tiles, questions, golden["tokens"])  # [n, B]
    clear = golden["margins"] > TIE_MARGIN
    return Replay(
        vision_cosine=_worst_cosine(golden["image_embeds"], model.prefix.image_embeds(tiles)),
        tokens_compared=int(clear.sum()),
        tokens_agreeing=int((agreeing & clear).sum()),
        step_ms=step_ms,
        rows=len(questions),
    )


def _agreeing(
    model: StartedModel, tiles: list[RGBImage], questions: dict[str, str], tokens: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], float]:
    """Which of the tokens [n, B] this model would have chosen, when each step is fed the recorded one; median ms of a step."""
    logits, cache = _read(model, tiles, questions, len(tokens))
    found, taken_s = [], []
    for step, chosen in enumerate(tokens):
        if step:
            started_s = time.perf_counter()
            logits, cache = model.decoder.step(tokens[step - 1].tolist(), cache)
            taken_s.append(time.perf_counter() - started_s)
        found.append((logits.argmax(axis=-1) == chosen) & np.isfinite(logits).all(axis=-1))
    return np.stack(found), median(taken_s) * 1000 if taken_s else 0.0


def _read(model: StartedModel, tiles: list[RGBImage], questions: dict[str, str], room: int) -> tuple[Logits, Cache]:
    """Logits [B, V] behind each question about these images, computed now and not remembered."""
    model.prefix.forget()
    return branch(model.decoder, model.read(tiles), [model.prompts.suffix(text) for text in questions.values()], room=room)


def load_golden(data: bytes, source: str) -> dict[str, NDArray[Any]]:
    """The arrays of golden.npz. Raises BundleError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{source}: {GOLDEN_FILE} cannot be read ({error})") from error


def _prompt_ids(model: StartedModel, num_images: int, question: str) -> NDArray[np.int64]:
    return np.asarray(model.prompt_ids(num_images, question), np.int64)


def _worst_cosine(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    dot = (expected * found).sum(axis=-1)  # [N, T]
    return float((dot / np.maximum(np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1), 1e-12)).min())
