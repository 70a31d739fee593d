"""layers.npz: what the layers of the fp32 model put out for one golden image and one golden prompt; `check --bisect` compares.

Of each layer some rows (tokens) are kept with all their channels, in float32: a fault in one channel, one position or one norm's
epsilon shows, which random projections to a few numbers would bury in the precision of the projection. InternVL3-1B: 1.7 MB.

    vision.layers           float32 [Lv, R, Dv]   rows R of each vision layer's output, one image, in the graph's row order
    vision.output           float32 [R', D]       rows of image_embeds
    decoder.inputs_embeds   float16 [S, D]        what the decoder read: embeddings and image_embeds of the prompt
    decoder.input_ids       int64 [S]             its tokens; -1 where the image is
    decoder.position_ids    int64 [A, S]          its rotary positions
    decoder.layers          float32 [L, R, D]
    decoder.output          float32 [1, C]        some columns of the logits behind the last token

Which rows and columns: `probe_places` of how many there are. The decoder's input is stored, not remade, so that a fault in the
vision graph or the embedding is not seen again in the decoder.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivekd.errors import BundleError
from drivekd.runtime.bundle.npz import npz_bytes

LAYERS_FILE = "layers.npz"
NUM_ROWS = 6  # the first and the last among them: a broken causal mask shows in the first, a wrong rotary angle in the last
NUM_COLUMNS = 2048  # of the logits: all of a 151,674-word vocabulary would be larger than the rest of the file

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GraphValues:
    """One graph. layers [L, R, D]: rows of each layer's output. output [R', C]: of the graph's own output."""

    layers: Floats
    output: Floats


@dataclass(frozen=True)
class LayerValues:
    """The file's content. inputs_embeds [S, D] as float32; input_ids [S], -1 = of the image; position_ids [A, S]."""

    vision: GraphValues
    decoder: GraphValues
    inputs_embeds: Floats
    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]


def probe_places(total: int, count: int = NUM_ROWS) -> NDArray[np.int64]:
    """At most `count` evenly spaced places of 0 .. total - 1, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def probe_rows(output: NDArray[Any]) -> Floats:
    """A layer's output [..., D] -> its probed rows [R, D]."""
    rows = output.reshape(-1, output.shape[-1])
    return np.asarray(rows[probe_places(len(rows))], np.float32)


def probe_columns(logits: NDArray[Any]) -> Floats:
    """Logits [1, V] -> its probed columns [1, C]."""
    return np.asarray(logits[:, probe_places(logits.shape[1], NUM_COLUMNS)], np.float32)


def layer_values_to_bytes(values: LayerValues) -> bytes:
    """layers.npz, the same bytes for the same values."""
    arrays: dict[str, NDArray[Any]] = {
        "vision.layers": values.vision.layers,
        "vision.output": values.vision.output,
        "decoder.layers": values.decoder.layers,
        "decoder.output": values.decoder.output,
        "decoder.inputs_embeds": values.inputs_embeds.astype(np.float16),
        "decoder.input_ids": values.input_ids,
        "decoder.position_ids": values.position_ids,
    }
    return npz_bytes(arrays)


def layer_values_from_bytes(data: bytes, source: str) -> LayerValues:
    """Read layers.npz. Raises BundleError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return LayerValues(
                GraphValues(arrays["vision.layers"], arrays["vision.output"]),
                GraphValues(arrays["decoder.layers"], arrays["decoder.output"]),
                arrays["decoder.inputs_embeds"].astype(np.float32),
                arrays["decoder.input_ids"],
                arrays["decoder.position_ids"],
            )
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{source}: {LAYERS_FILE} cannot be read ({error})") from error
