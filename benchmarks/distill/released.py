"""The released Drive-KD step, rendered plainly: the baseline of `step.py` and what tests hold the fast path to.

One sample a micro-batch. The student and three whole teachers run with eager attention, every layer's map of every head is kept
(`output_attentions=True`), lm_head runs on all positions, each loss has a backward pass of its own over the retained graph, each
gradient is cloned, and AGP projects the cloned full vectors of every micro-batch. Slow and obvious on purpose; leave it alone.

Three things are kinder than the released code, so that a ratio against this baseline is the smaller one: vision towers run with
SDPA and keep no maps, a teacher of mixing weight 0 does not run at all, and teachers come and go one after the other. Weights are
fp32 (the released code trains bf16 weights), so that gradients can be compared.

    S positions of the sample, H heads, K capabilities with a non-zero mixing weight; everywhere B = 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from drivekd.images import load_image, preprocess
from drivekd.processor import Processor
from drivekd.sample import CAPABILITIES, Sample

IGNORED = -100
LEARNING_RATE = 5e-5  # the released defaults: AdamW, no decay, no clipping, constant rate, accumulation 4
ACCUMULATION = 4

Gradient = list[Tensor]
Mixing = Mapping[str, Mapping[str, float]]  # the sample's capability -> teacher -> pi

MIXED: Mixing = {row: {column: 0.8 if row == column else 0.1 for column in CAPABILITIES} for row in CAPABILITIES}
ROUTED: Mixing = {row: {column: float(row == column) for column in CAPABILITIES} for row in CAPABILITIES}


@dataclass(frozen=True)
class Inputs:
    """One labelled sample: pixel_values [N, 3, H, W], input_ids and labels [1, S], vision_mask [1, S] bool."""

    capability: str
    pixel_values: Tensor
    input_ids: Tensor
    labels: Tensor
    vision_mask: Tensor


def inputs_from_sample(sample: Sample, processor: Processor) -> Inputs:
    """Prompt, answer and end of turn; the answer and the end of turn are supervised."""
    assert sample.answer is not None, f"{sample.source}: the released code trains labelled samples alone"
    prompts = processor.prompts
    prompt = prompts.prefix(len(sample.images)) + prompts.suffix(sample.question)
    answer = prompts.answer(sample.answer)
    input_ids = torch.tensor([prompt + answer])
    tiles = [preprocess(load_image(path), processor.images) for path in sample.images]
    return Inputs(
        capability=sample.capability,
        pixel_values=torch.from_numpy(np.stack(tiles)),
        input_ids=input_ids,
        labels=torch.tensor([[IGNORED] * len(prompt) + answer]),
        vision_mask=input_ids == prompts.image_token_id,
    )


def load_eager(checkpoint: Path) -> InternVLForConditionalGeneration:
    """fp32 weights, eager attention in the language model: the only one that gives attention maps in transformers."""
    attention = {"text_config": "eager", "vision_config": "sdpa"}
    model = InternVLForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )
    assert isinstance(model, InternVLForConditionalGeneration)
    return model


def load_teacher(checkpoint: Path) -> InternVLForConditionalGeneration:
    """A whole frozen model."""
    return load_eager(checkpoint).eval().requires_grad_(False)


def load_student(checkpoint: Path) -> InternVLForConditionalGeneration:
    """Its language model (with the head) trains; vision tower and projector are frozen, as in the paper's figure."""
    student = load_eager(checkpoint).train().requires_grad_(False)
    student.model.language_model.requires_grad_(True)
    student.lm_head.requires_grad_(True)
    return student


def trainable(student: InternVLForConditionalGeneration) -> list[torch.nn.Parameter]:
    """The parameters that a gradient list follows, in the order of `named_parameters`."""
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


# --- losses ---------------------------------------------------------------------------------------------------------


def released_losses(
    student: InternVLForConditionalGeneration,
    teachers: Mapping[str, InternVLForConditionalGeneration],
    inputs: Inputs,
    mixing_row: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """{"ce": w_ce CE, capability: pi w_c L_c}, scalars with their graph; capabilities of mixing weight 0 are left out.

    weights: static weights of "ce" and the capabilities, 1 where none is given. pi does not scale CE.
    """
    weights = weights or {}
    logits, ours = forward(student, inputs)
    losses = {"ce": weights.get("ce", 1.0) * cross_entropy(logits, inputs.labels)}
    for name in CAPABILITIES:
        if mixing_row[name] > 0:
            losses[name] = mixing_row[name] * weights.get(name, 1.0) * distil(name, teachers[name], ours, inputs)
    return losses


def distil(name: str, teacher: InternVLForConditionalGeneration, ours: Sequence[Tensor], inputs: Inputs) -> Tensor:
    """The capability's signal loss against one teacher, whose maps are dropped on return."""
    with torch.no_grad():
        _, theirs = forward(teacher, inputs)
    return signal_loss(name, ours, theirs, inputs.vision_mask)


def forward(model: InternVLForConditionalGeneration, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits of all positions [1, S, V] and the attention of all layers, each [1, H, S, S]."""
    embeddings = model.get_input_embeddings()(inputs.input_ids)  # [1, S, D]
    features = model.model.get_image_features(pixel_values=inputs.pixel_values, return_dict=True).pooler_output  # [N, T, D]
    embeddings = embeddings.masked_scatter(inputs.vision_mask[:, :, None], features)
    output = model(inputs_embeds=embeddings, use_cache=False, output_attentions=True)
    return output.logits, output.attentions


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the sample's supervised tokens; position i predicts token i + 1."""
    return F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORED)


def signal_loss(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], vision_mask: Tensor) -> Tensor:
    """docs/method.md, "Signals": perception at layer 0, planning at layer -2, reasoning over 0..-2; maps are means over heads."""
    if name == "perception":
        return text_to_vision(ours[0], theirs[0], vision_mask)
    if name == "planning":
        return text_to_vision(ours[-2], theirs[-2], vision_mask)
    assert name == "reasoning"
    return full_maps(ours[:-1], theirs[:-1])


def text_to_vision(ours: Tensor, theirs: Tensor, vision_mask: Tensor) -> Tensor:
    """Σ M (Ā^s - Ā^t)² / max(1, Σ M), M = text rows x vision columns."""
    pairs = ~vision_mask[:, :, None] & vision_mask[:, None, :]  # [1, S, S]
    squared = (ours.mean(1) - theirs.mean(1)) ** 2 * pairs
    return squared.sum() / pairs.sum().clamp(min=1)


def full_maps(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """(1/k) Σ_l mean_ij (Ā^s_l - T_l)², T_l the uniform mean of the teacher layers in student layer l's window."""
    means = [attention.mean(1) for attention in theirs]  # [1, S, S] each
    total = ours[0].new_zeros(())
    for layer, window in enumerate(windows(len(ours), len(theirs))):
        target = torch.stack([means[index] for index in window]).mean(0)  # [1, S, S]
        total = total + ((ours[layer].mean(1) - target) ** 2).mean()
    return total / len(ours)


def windows(student_layers: int, teacher_layers: int) -> list[range]:
    """The released stride-1 sliding window: width max(1, m - k + 1), the start clamped at the end."""
    width = max(1, teacher_layers - student_layers + 1)
    starts = [min(layer, teacher_layers - width) for layer in range(student_layers)]
    return [range(start, start + width) for start in starts]


# --- gradients ------------------------------------------------------------------------------------------------------


def released_gradients(
    student: InternVLForConditionalGeneration,
    teachers: Mapping[str, InternVLForConditionalGeneration],
    inputs: Inputs,
    mixing_row: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
) -> tuple[dict[str, Gradient], dict[str, float]]:
    """The K + 1 gradients of one sample by name, "ce" first, each a clone over `trainable(student)`; and the losses' values."""
    losses = released_losses(student, teachers, inputs, mixing_row, weights)
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    parameters = trainable(student)
    gradients: dict[str, Gradient] = {}
    for name, loss in losses.items():
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        gradients[name] = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = None
    return gradients, values


def agp(anchor: Gradient, followers: Sequence[Gradient], order: Sequence[int], *, stages: Sequence[int] = (1, 2)) -> Gradient:
    """Both stages of AGP on whole vectors; CE counts once for each capability.

    order: a permutation of 0..K-1 over `followers`, in which stage 2 visits them.
    """
    merged = []
    for index in order:
        follower = followers[index]
        if 1 in stages:
            follower = without_conflict(follower, anchor)
        merged.append([a + f for a, f in zip(anchor, follower, strict=True)])
    projected = [[part.clone() for part in gradient] for gradient in merged]
    if 2 in stages:
        for i in range(len(merged)):
            for j in range(len(merged)):
                if i != j:
                    projected[i] = without_conflict(projected[i], merged[j])
    return [sum(parts[1:], start=parts[0]) for parts in zip(*projected, strict=True)]


def without_conflict(gradient: Gradient, other: Gradient) -> Gradient:
    """gradient - <gradient, other> / ‖other‖² other where they conflict; otherwise unchanged."""
    product, norm = dot(gradient, other), dot(other, other)
    if product >= 0 or norm == 0:
        return gradient
    return [g - product / norm * o for g, o in zip(gradient, other, strict=True)]


def dot(a: Gradient, b: Gradient) -> float:
    """One global dot product over all parameters."""
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


# --- one optimizer step ---------------------------------------------------------------------------------------------


def released_step(
    student: InternVLForConditionalGeneration,
    teachers: Mapping[str, InternVLForConditionalGeneration],
    window: Sequence[Inputs],
    mixing: Mixing,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """One accumulation window: gradients and projection for each sample, the mean of the projected gradients, one update.

    rng draws stage 2's permutations. Returns each term's mean weighted loss over the samples that have it.
    """
    parameters = trainable(student)
    total: Gradient = [torch.zeros_like(parameter) for parameter in parameters]
    seen: dict[str, list[float]] = {}
    for inputs in window:
        gradients, values = released_gradients(student, teachers, inputs, mixing[inputs.capability], weights)
        anchor, *followers = gradients.values()
        update = agp(anchor, followers, rng.permutation(len(followers)).tolist()) if followers else anchor
        for accumulated, gradient in zip(total, update, strict=True):
            accumulated.add_(gradient, alpha=1 / len(window))
        for name, value in values.items():
            seen.setdefault(name, []).append(value)
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
    return {name: sum(values) / len(values) for name, values in seen.items()}


def released_optimizer(student: InternVLForConditionalGeneration) -> torch.optim.AdamW:
    """AdamW as released."""
    return torch.optim.AdamW(trainable(student), lr=LEARNING_RATE, weight_decay=0.0)
