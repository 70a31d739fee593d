"""What a run holds in a device's memory, part by part, and which setting would make it fit, at the price of the least time.

Which settings there are, the cheapest in time first, `memory.smaller_settings` alone knows; here is what each saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import yaml

from drivekd.config import LoraConfig

Setting = tuple[str, str]  # key, value as in --set


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device, named as torch does.

    rounded: weights in fewer bits, made once a step. optimizer: AdamW's moments. gradients: the rows of all objectives, when they
    are full. activations: what else came and went in the largest step. growth: kept features of pictures that a long run has and
    a few steps have not. other: Python, libraries and records. available: what this process may hold in all.
    """

    device: str = "cpu"
    student: int = 0
    teachers: int = 0
    rounded: int = 0
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    growth: int = 0
    other: int = 0
    available: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what takes them, in the order of a table."""
        names = ("student", "teachers", "rounded", "optimizer", "gradients", "activations", "growth", "other")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether all of it is available."""
        return self.total <= self.available


@dataclass(frozen=True)
class Shape:
    """What the parts depend on. packs: at once in the largest micro-batch; tokens: of its longest pack; sample_tokens: of the
    longest single sample, below which no pack can be cut; layers: of the student's language model; layer_input_bytes: what one
    of them is given in the largest micro-batch; trainable: scalars; adapter_width: scalars that LoRA trains for each rank."""

    packs: int
    tokens: int
    sample_tokens: int
    layers: int
    layer_input_bytes: int
    trainable: int
    adapter_width: int


def after(before: Footprint, shape: Shape, key: str, value: str) -> Footprint | None:
    """The footprint with one setting changed; None for a key whose effect is not known here.

    Activations go with packs and tokens at once (attention's squares fall faster, so that this is an upper bound). With gradient
    checkpointing a layer's input stays for each layer, and one layer's activations (Chen et al. 2016, arXiv 1604.06174).
    """
    if key == "training.micro_batch_size":
        return replace(before, activations=round(before.activations * min(1.0, int(value) / shape.packs)))
    if key == "training.max_pack_tokens":
        longest = max(int(value), shape.sample_tokens)
        return replace(before, activations=round(before.activations * min(1.0, longest / shape.tokens)))
    if key == "student.gradient_checkpointing":
        kept = shape.layers * shape.layer_input_bytes + before.activations // shape.layers
        return replace(before, activations=min(before.activations, kept))
    if key == "training.offload_gradients":
        return replace(before, gradients=0)
    if key == "teachers.precision":
        return replace(before, teachers=before.teachers // 2)
    if key == "teachers.device":
        return replace(before, teachers=0)
    if key == "student.lora":
        share = min(1.0, LoraConfig(**yaml.safe_load(value)).rank * shape.adapter_width / shape.trainable)
        return replace(before, optimizer=round(before.optimizer * share), gradients=round(before.gradients * share))
    return None


def cheapest_fit(before: Footprint, shape: Shape, ladder: Sequence[Setting]) -> tuple[tuple[Setting, ...], Footprint] | None:
    """The first setting of the ladder that fits alone, else the fewest of its first ones that fit together.

    A number is halved as often as needed. None: all of them together do not fit.
    """
    for key, value in ladder:
        for smaller in _halvings(key, value):
            found = after(before, shape, key, smaller)
            if found is not None and found.fits:
                return ((key, smaller),), found
    now, settings = before, list[Setting]()
    for key, value in ladder:
        base, earlier = now, settings
        for smaller in _halvings(key, value):
            found = after(base, shape, key, smaller)
            if found is None or found.total == now.total:
                break
            now, settings = found, [*earlier, (key, smaller)]
            if now.fits:
                return tuple(settings), now
    return None


def _halvings(key: str, value: str) -> Iterator[str]:
    """The value; and for sizes the half of it, and so on."""
    yield value
    if key in ("training.micro_batch_size", "training.max_pack_tokens"):
        size = int(value)
        while size > 1:
            size //= 2
            yield str(size)
