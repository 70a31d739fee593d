"""What activations are on real camera samples: from records to feeds to the ranges of each MatMul's input.

A sample is one record with one of its cameras (both drawn with a seed): its tile through the vision tower, then system prompt,
image, question and, where there is one, answer through the language model. More cameras would add prompt, not other activations,
and a tile takes a CPU seconds.

T tokens an image, S tokens of a sample, D hidden size, A rotary axes, V vocabulary
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drivekd.data.readers import check_images, read_samples
from drivekd.export.parity.probed_graph import prefill_feeds
from drivekd.export.source.layer_recording import prompt_positions
from drivekd.images import load_image
from drivekd.processor import Processor
from drivekd.runtime.bundle.manifest import GraphSpec
from drivekd.sample import Sample

from .ranges import Calibration, Feeds, record_ranges

NUM_SAMPLES = 8  # a 448 px tile takes InternViT-300M 5 to 7 s on two cores


@dataclass(frozen=True)
class CameraSample:
    """source: "FILE, record N". pixel_values: of one image; input_ids [S]; position_ids [A, S]; image [S] bool: its tokens."""

    source: str
    pixel_values: NDArray[np.float32]
    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    image: NDArray[np.bool_]


@dataclass(frozen=True)
class Calibrated:
    """By graph, as manifest.graphs names them: what int8 needs, and the feeds that it was recorded on (of one dialect alone)."""

    ranges: dict[str, Calibration]
    feeds: dict[str, list[Feeds]]


def camera_samples(
    records: Path, processor: Processor, *, count: int = NUM_SAMPLES, seed: int = 0, but: Collection[Path] = ()
) -> list[CameraSample]:
    """`count` records of a Drive-KD file, or all when there are fewer. but: pictures whose records are left out.

    Raises DataError naming file, record and field.
    """
    found = read_samples(records, unlabelled=True)
    samples = [sample for sample in found if not set(sample.images) & set(but)]
    rng = np.random.default_rng(seed)
    chosen = [samples[i] for i in sorted(rng.choice(len(samples), min(count, len(samples)), replace=False).tolist())]
    check_images(chosen)
    return [_camera_sample(sample, int(rng.integers(len(sample.images))), processor) for sample in chosen]


def calibrate(
    samples: Sequence[CameraSample], embedding: NDArray[np.float32], graphs: Mapping[str, GraphSpec], folder: Path
) -> Calibrated:
    """Run the float32 graphs in `folder` on the samples. embedding [V, D]: rows of the text tokens.

    graphs: "vision" and one or more of "decoder.<dialect>", whose MatMuls have the same names; one of them is run.
    Raises ExportError when an image, a weight or an activation is NaN or infinite, naming sample and graph.
    """
    sources = [sample.source for sample in samples]
    vision_feeds: list[Feeds] = [{"pixel_values": sample.pixel_values[None]} for sample in samples]
    vision, embeds = record_ranges(graphs["vision"], folder, vision_feeds, sources)
    decoders = [name for name in graphs if name != "vision"]
    spec = graphs[decoders[0]]
    decoder_feeds = [_decoder_feeds(*pair, spec, embedding) for pair in zip(samples, embeds, strict=True)]
    decoder, _ = record_ranges(spec, folder, decoder_feeds, sources)
    return Calibrated(
        {"vision": vision, **dict.fromkeys(decoders, decoder)}, {"vision": vision_feeds, decoders[0]: decoder_feeds}
    )


def _camera_sample(sample: Sample, camera: int, processor: Processor) -> CameraSample:
    prompts = processor.prompts
    prefix = prompts.prefix(1)
    text = prompts.suffix(sample.question) + ([] if sample.answer is None else prompts.answer(sample.answer))
    ids = np.asarray([*prefix, *text], np.int64)
    return CameraSample(
        source=sample.source,
        pixel_values=processor.normalize(processor.resize(load_image(sample.images[camera]))),
        input_ids=ids,
        position_ids=prompt_positions(processor.prefix_positions(prefix), len(text)),
        image=ids == prompts.image_token_id,
    )


def _decoder_feeds(
    sample: CameraSample, image_embeds: NDArray[np.float32], spec: GraphSpec, embedding: NDArray[np.float32]
) -> Feeds:
    rows = embedding[sample.input_ids].astype(np.float32)  # [S, D], a copy
    rows[sample.image] = image_embeds[0]
    feeds = prefill_feeds(spec, rows, sample.position_ids)
    return {name: np.asarray(value) for name, value in feeds.items()}
