"""What turns images and text into model inputs: one path in training and on the car. Imports no torch, reads no checkpoint.

Qwen2.5-VL's own processor keeps an image's shape, and InternVL's chooses a grid by it, so tokens per image vary. Here every
camera image is resized to one tile, or to one grid of tiles: prompts have one length, images stack, and attention maps of student
and teacher compare token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from drivekd.chat import ChatFormat, PromptEncoder
from drivekd.errors import CheckpointError, UsageError
from drivekd.files import json_digest
from drivekd.images import ImageForm, PatchSettings, PixelValues, RGBImage, pixel_values, tiles_of

INTERNVL = "internvl"
QWEN2_5_VL = "qwen2_5_vl"

# Letters of several alphabets, digits, spaces, line ends, an object's tag: what tokenizers and their normalizers treat
# differently.
_PROBE = "Ist die Straße links frei?  <c1,CAM_BACK,0.5073,912.5>\n\tÅ\u0301 “Ende” 12345 \u8eca\u9053 final_answer: A."


Positions: TypeAlias = NDArray[np.int64]  # [A, P]


@dataclass(frozen=True)
class Processor:
    """images: how pixels are made; chat: how prompts are made; prompts: the encoder over both tokenizer and chat."""

    model_type: str
    images: ImageForm
    chat: ChatFormat
    prompts: PromptEncoder
    tokenizer: Tokenizer

    def resize(self, image: RGBImage) -> RGBImage:
        """uint8 RGB [H, W, 3] of any size -> its tiles, uint8 [height, width, 3] as `images.tiles_px` says; aspect not kept."""
        return tiles_of(image, self.images)

    def normalize(self, resized: RGBImage) -> PixelValues:
        """A resized image -> float32 of shape `images.pixel_shape`, the same for every image, so that images stack."""
        return pixel_values(resized, self.images)

    def prefix_positions(self, prefix_ids: Sequence[int]) -> Positions:
        """Rotary positions [A, P] of a prompt's prefix with its images; A = 1, or 3 (time, row, column) in Qwen2.5-VL.

        Text after the prefix goes on at the largest of them plus 1, on every axis alike. Raises UsageError on an image that is
        not whole.
        """
        if isinstance(self.images, PatchSettings):
            return mrope_positions(prefix_ids, self.prompts.image_token_id, self.images.token_grid)
        return np.arange(len(prefix_ids), dtype=np.int64)[None]  # [1, P]


def mrope_positions(ids: Sequence[int], image_token_id: int, token_grid: tuple[int, int]) -> Positions:
    """Qwen2.5-VL's multimodal rotary positions [3, P] (arXiv 2409.12191, section 2.1): time, row, column.

    Text counts up on all three axes alike. An image's tokens share one time and have their row and column, all counted from where
    the text stopped; text goes on behind the largest of them. token_grid: rows and columns of every image.
    """
    rows, columns = token_grid
    size = rows * columns
    image = np.stack([np.zeros(size, np.int64), *(axis.ravel() for axis in np.indices((rows, columns)))])  # [3, T]
    positions = np.zeros((3, len(ids)), np.int64)
    index = following = 0
    while index < len(ids):
        if ids[index] != image_token_id:
            positions[:, index] = following
            index, following = index + 1, following + 1
            continue
        if list(ids[index : index + size]) != [image_token_id] * size:
            raise UsageError(f"the image at token {index} of the prompt has fewer tokens than {rows} x {columns}")
        positions[:, index : index + size] = image + following
        index, following = index + size, following + max(rows, columns)
    return positions


def prompt_digest(prompts: PromptEncoder) -> str:
    """sha256 (hex) of the vocabulary, the chat format and the ids of a fixed question: what texts become, whatever file says it.

    How many tokens an image has is left out: it follows from the tile.
    """
    vocabulary = sorted(prompts.tokenizer.get_vocab().items())
    chat = {key: value for key, value in prompts.chat.to_json().items() if key != "tokens_per_image"}
    probe = [*prompts.prefix(0), *prompts.suffix(_PROBE)]
    return json_digest([vocabulary, chat, probe])


def num_words(tokenizer: Tokenizer) -> int:
    """Rows that an embedding or a head needs for a tokenizer: its largest id, and one. Models have more, as padding."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def parse_tokenizer(data: bytes, source: str) -> Tokenizer:
    """The tokenizer in the bytes of a tokenizer.json. Raises CheckpointError naming `source`.

    Truncation and padding, which save_pretrained stores from the last call before it, are those of somebody's batch: they are
    left out, or every question would be cut and filled up to their length.
    """
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise CheckpointError(f"{source}: not a tokenizer file ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
