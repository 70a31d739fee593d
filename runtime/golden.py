"""The recorded run that a bundle carries: replayed on another machine, it says whether the engine there computes the same.

golden.npz:
    images          uint8 [N, H, W, 3]      seeded camera tiles
    image_embeds    float32 [N, T, D]
    prompt_ids.C    int64 [P + Q]           per capability C: prefix and question
    tokens          int64 [n, B]            greedy tokens of the B capabilities, end of turn not obeyed
    margins         float32 [n, B]          distance of the two best logits behind each token
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import BundleError
from drivekd.images import RGBImage, resize

from .deadline import Deadline
from .sampling import greedy, top2_margin
from .session import Session
from .triad import branch

GOLDEN_FILE = "golden.npz"
NUM_IMAGES = 2
NUM_TOKENS = 16
MIN_COSINE = 0.999  # DEPLOY section 4
MIN_AGREEMENT = 0.99
# Two fp32 engines differ by some 1e-5 in a logit; where the best two are nearer than this, either may win.
TIE_MARGIN = 1e-3


@dataclass(frozen=True)
class Replay:
    """vision_cosine: worst of all image tokens. tokens_compared leaves out ties of the recorded run."""

    vision_cosine: float
    tokens_compared: int
    tokens_agreeing: int

    @property
    def passed(self) -> bool:
        enough = self.tokens_agreeing >= MIN_AGREEMENT * self.tokens_compared
        return enough and self.vision_cosine >= MIN_COSINE  # a NaN cosine is not >= anything


def golden_images(size_px: int | tuple[int, int], num_images: int = NUM_IMAGES, seed: int = 0) -> dict[str, RGBImage]:
    """Seeded smooth images by camera name, uint8 [H, W, 3]; white noise would look alike to a vision tower.

    size_px: of a square, or width and height (ImageForm.tile_px).
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_images, 6, 6, 3), dtype=np.uint8)
    return {f"camera_{i}": resize(image, size_px) for i, image in enumerate(coarse)}


def record_golden(session: Session) -> bytes:
    """Run a session on the seeded images and return golden.npz. Raises RunnerError."""
    tiles = golden_images(session.manifest.images.tile_px)
    images = _for_session(session, list(tiles.values()))
    questions = session.questions()
    prefix = session.prefix.read(list(images.values()), Deadline())
    assert prefix is not None
    suffixes = [session.prompts.suffix(text) for text in questions.values()]
    logits, cache = branch(session.decoder, prefix, suffixes, room=NUM_TOKENS)
    tokens, margins = [], []  # n times [B]
    for _ in range(NUM_TOKENS):
        tokens.append(greedy(logits)[0])
        margins.append(top2_margin(logits))
        logits, cache = session.decoder.step(tokens[-1].tolist(), cache)
    arrays: dict[str, NDArray[Any]] = {
        "images": np.stack(list(tiles.values())),
        "image_embeds": session.image_embeds(images),
        "tokens": np.stack(tokens),
        "margins": np.stack(margins),
        **{f"prompt_ids.{name}": _prompt_ids(session, len(tiles), text) for name, text in questions.items()},
    }
    return _npz(arrays)


def replay_golden(session: Session, data: bytes, source: str) -> Replay:
    """Run the recorded inputs through `session`. Raises BundleError when golden.npz or the tokenizer do not fit the bundle."""
    golden = load_golden(data, source)
    questions = session.questions()
    for name, text in questions.items():
        if not np.array_equal(golden[f"prompt_ids.{name}"], _prompt_ids(session, len(golden["images"]), text)):
            raise BundleError(f"{source}: this machine's tokenizers library gives other ids for the {name} prompt; update it")
    images = _for_session(session, list(golden["images"]))
    logits = session.forced_logits(images, list(questions.values()), golden["tokens"])  # [n, B, V]
    clear = golden["margins"] > TIE_MARGIN  # [n, B]
    agreeing = (logits.argmax(axis=-1) == golden["tokens"]) & np.isfinite(logits).all(axis=-1)
    return Replay(
        vision_cosine=_worst_cosine(golden["image_embeds"], session.image_embeds(images)),
        tokens_compared=int(clear.sum()),
        tokens_agreeing=int((agreeing & clear).sum()),
    )


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Arrays as an .npz file, the same bytes for the same arrays: ZipInfo's own date is fixed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.save(file, array, allow_pickle=False)
    return buffer.getvalue()


def load_golden(data: bytes, source: str) -> dict[str, NDArray[Any]]:
    """The arrays of golden.npz. Raises BundleError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{source}: {GOLDEN_FILE} cannot be read ({error})") from error


def _for_session(session: Session, tiles: list[RGBImage]) -> dict[str, RGBImage]:
    """Tiles under the names that this session's cameras have, or under numbers."""
    names = session.cameras or [f"camera_{i}" for i in range(len(tiles))]
    return dict(zip(names, tiles, strict=False))


def _prompt_ids(session: Session, num_images: int, question: str) -> NDArray[np.int64]:
    return np.asarray(session.prompt_ids(num_images, question), np.int64)


def _worst_cosine(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    dot = (expected * found).sum(axis=-1)  # [N, T]
    return float((dot / np.maximum(np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1), 1e-12)).min())
