"""Which shapes an engine must take: from the manifest's free dims to TensorRT's optimization profiles.

TensorRT chooses kernels for a profile's optimum and allocates for its maximum. The decoder has two: prefill (one row of many new
columns, for the frame and for each question) and decode (one new column of every branch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from drivekd.contract import DEFAULT_MAX_NEW_TOKENS
from drivekd.errors import BundleError
from drivekd.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec

Dims: TypeAlias = tuple[int, ...]
Range: TypeAlias = tuple[int, int, int]  # min, opt, max of one free dim
ShapeRange: TypeAlias = tuple[Dims, Dims, Dims]  # min, opt, max of one input

CAMERAS = 6  # of a bundle that names none: nuScenes' surround view
QUESTION_MARGIN = 256  # tokens of a question longer than the bundle's own
ALIGNMENT = 64  # columns; matrix kernels work in such blocks


@dataclass(frozen=True)
class Profile:
    """Shapes of every input with a free dim: name -> (min, opt, max)."""

    name: str
    shapes: dict[str, ShapeRange]


@dataclass(frozen=True)
class Limits:
    """The largest calls. images: of a frame. branches: questions decoded together. prompt, context: tokens."""

    images: int
    branches: int
    prompt: int
    context: int


def limits_of(manifest: Manifest) -> Limits:
    """What this bundle's own prompts need, all of its cameras and the longest answer, within the model's positions.

    A byte-level token covers at least one byte, so the text's bytes bound its tokens.
    """
    chat, images = manifest.chat, len(manifest.cameras) or CAMERAS
    markers = len((chat.image_start + chat.image_end).encode())
    frame = len(chat.before_images.encode()) + images * (chat.tokens_per_image + markers)
    question = max((len(text.encode()) for text in manifest.prompts.values()), default=0)
    text = question + len((manifest.structured_instruction + chat.after_question).encode()) + QUESTION_MARGIN
    answer = max([DEFAULT_MAX_NEW_TOKENS, *manifest.generation.max_new_tokens.values()])  # the default: of a structured one
    context = min(_aligned(frame + text + answer), manifest.model.max_positions)
    return Limits(images, max(len(manifest.prompts), 1), min(_aligned(frame + text), context), context)


def _aligned(number: int) -> int:
    return -(-number // ALIGNMENT) * ALIGNMENT


def vision_profiles(spec: GraphSpec, limits: Limits) -> tuple[Profile, ...]:
    """One profile, tuned for one image: the runtime reads image by image. () when the image count is fixed."""
    return _profiles(spec, {"vision": {"images": (1, 1, limits.images)}})


def decoder_profiles(spec: GraphSpec, limits: Limits) -> tuple[Profile, ...]:
    """Prefill and decode of the concat dialect. total = past + seq at min, opt and max alike, as TensorRT checks."""
    prefill = {"batch": (1, 1, 1), "seq": (1, limits.prompt, limits.prompt), "past": (0, 0, limits.context)}
    last = max(limits.context - 1, 1)
    decode = {"batch": (1, limits.branches, limits.branches), "seq": (1, 1, 1), "past": (1, min(limits.prompt, last), last)}
    return _profiles(spec, {"prefill": _with_total(prefill), "decode": _with_total(decode)})


def _with_total(sizes: dict[str, Range]) -> dict[str, Range]:
    past, seq = sizes["past"], sizes["seq"]
    return {**sizes, "total": (past[0] + seq[0], past[1] + seq[1], past[2] + seq[2])}


def _profiles(spec: GraphSpec, sizes: Mapping[str, Mapping[str, Range]]) -> tuple[Profile, ...]:
    free = [tensor for tensor in spec.inputs if any(isinstance(dim, str) for dim in tensor.dims)]
    if not free:
        return ()
    return tuple(
        Profile(name, {tensor.name: _shape_range(tensor, ranges, spec.file) for tensor in free}) for name, ranges in sizes.items()
    )


def _shape_range(tensor: TensorSpec, ranges: Mapping[str, Range], file: str) -> ShapeRange:
    unknown = [dim for dim in tensor.dims if isinstance(dim, str) and dim not in ranges]
    if unknown:
        raise BundleError(
            f"{file}: input {tensor.name} has the free dim {unknown[0]!r}; an engine knows {', '.join(ranges)}. "
            "Engines are built from the concat dialect"
        )
    chosen = [ranges[dim] if isinstance(dim, str) else (dim, dim, dim) for dim in tensor.dims]
    return _column(chosen, 0), _column(chosen, 1), _column(chosen, 2)


def _column(ranges: Sequence[Range], index: int) -> Dims:
    return tuple(values[index] for values in ranges)
