"""The released step with single measures switched on, to say what each of them brings. The losses are `released.py`'s own.

capture           SDPA, and head-mean maps of the wanted layers alone, instead of eager attention and all heads of all layers
early_exit        a teacher stops behind the last layer that is compared (with capture: behind its map), and never runs lm_head
supervised_logits the student's lm_head runs on the answer's positions alone
vision_once       the frozen towers' embeddings of a sample's images are computed once and kept
teacher_cache     perception's and planning's maps, text rows x vision columns, are computed once and kept (reasoning stays live)
plain_gradients   torch.autograd.grad without clones; the graph is freed by the last backward pass
coefficients      AGP on the Gram matrix instead of on whole vectors

What is kept stays in memory here and on disk in the product. The warm-up step fills it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from benchmarks.distill.models import BenchmarkFolder
from benchmarks.distill.released import (
    IGNORED,
    Gradient,
    Inputs,
    Mixing,
    agp,
    cross_entropy,
    dot,
    full_maps,
    load_student,
    load_teacher,
    released_optimizer,
    trainable,
)
from drivekd.distill.projection import agp_coefficients
from drivekd.models.probe import CAPTURE_ATTENTION, MapRequest, capture

Model: TypeAlias = InternVLForConditionalGeneration
Maps: TypeAlias = Mapping[int, Tensor]  # layer -> head mean, [1, S, S], or [1, R, V]: text rows x vision columns


@dataclass(frozen=True)
class Measures:
    """Which measures are on."""

    capture: bool = False
    early_exit: bool = False
    supervised_logits: bool = False
    vision_once: bool = False
    teacher_cache: bool = False
    plain_gradients: bool = False
    coefficients: bool = False

    @classmethod
    def named(cls, *names: str) -> Measures:
        """Those alone; "all" = every one."""
        known = [field.name for field in fields(cls)]
        return cls(**dict.fromkeys(known if names == ("all",) else names, True))


class MeasuredStep:
    """Student, teachers and optimizer as in `released.py`, with measures; a call is one optimizer step over a window."""

    def __init__(self, folder: BenchmarkFolder, measures: Measures, mixing: Mixing, weights: Mapping[str, float]) -> None:
        self._measures = measures
        self._mixing = mixing
        self._weights = weights
        self._student = load_student(folder.student)
        self._teachers = {name: load_teacher(path) for name, path in folder.teachers.items()}
        self._depth = {id(model): len(model.model.language_model.layers) for model in self._models()}
        if measures.capture:
            for model in self._models():
                model.model.language_model.set_attn_implementation(CAPTURE_ATTENTION)
        if measures.early_exit:
            for name, teacher in self._teachers.items():
                del teacher.model.language_model.layers[max(self._layers(name, teacher)) + 1 :]
        self._optimizer = released_optimizer(self._student)
        self._parameters = trainable(self._student)
        self._rng = np.random.default_rng(0)
        self._features: dict[tuple[int, int], Tensor] = {}
        self._blocks: dict[tuple[str, int], Tensor] = {}

    def _models(self) -> list[Model]:
        return [self._student, *self._teachers.values()]

    def _layers(self, name: str, model: Model) -> list[int]:
        depth = self._depth[id(model)]
        return {"perception": [0], "planning": [depth - 2], "reasoning": list(range(depth - 1))}[name]

    def __call__(self, window: Sequence[Inputs]) -> None:
        total = [torch.zeros_like(parameter) for parameter in self._parameters]
        for inputs in window:
            losses = self.losses(inputs)
            gradients = self._gradients(losses)
            del losses  # and with them the graph
            for accumulated, gradient in zip(total, self._update(gradients), strict=True):
                accumulated.add_(gradient, alpha=1 / len(window))
        for parameter, gradient in zip(self._parameters, total, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """As `released_losses`."""
        row = {name: share for name, share in self._mixing[inputs.capability].items() if share > 0}
        hidden, ours = self._forward(self._student, inputs, self._requests(row, self._student, inputs))
        losses = {"ce": self._weights.get("ce", 1.0) * self._cross_entropy(hidden, inputs.labels)}
        for name, share in row.items():
            losses[name] = share * self._weights.get(name, 1.0) * self._signal(name, ours, inputs)
        return losses

    def _requests(self, names: Iterable[str], model: Model, inputs: Inputs) -> dict[int, MapRequest]:
        """Whole maps for reasoning, text rows x vision columns for the others, by layer."""
        vision = inputs.vision_mask[0]
        block = MapRequest((~vision).nonzero().T, vision.nonzero().T)
        found: dict[int, MapRequest] = {}
        for name in names:
            for layer in self._layers(name, model):
                found[layer] = MapRequest() if name == "reasoning" else found.get(layer, block)
        return found

    def _forward(self, model: Model, inputs: Inputs, requests: Mapping[int, MapRequest]) -> tuple[Tensor, Maps]:
        """Last hidden state [1, S, D] and the wanted maps; a teacher with early exit stops behind them and has no such state."""
        embeddings = model.get_input_embeddings()(inputs.input_ids)
        embeddings = embeddings.masked_scatter(inputs.vision_mask[:, :, None], self._image_features(model, inputs))
        decoder = model.model.language_model
        if not self._measures.capture:
            output = decoder(inputs_embeds=embeddings, use_cache=False, output_attentions=True)
            return output.last_hidden_state, {layer: output.attentions[layer].mean(1) for layer in requests}
        hidden = embeddings
        stop = self._measures.early_exit and model is not self._student
        with capture(decoder.layers, requests, stop_after_last=stop) as captured:
            hidden = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return hidden, captured.attention

    def _image_features(self, model: Model, inputs: Inputs) -> Tensor:
        key = (id(model), id(inputs))
        if key in self._features:
            return self._features[key]
        with torch.no_grad():
            features: Tensor = model.model.get_image_features(pixel_values=inputs.pixel_values, return_dict=True).pooler_output
        if self._measures.vision_once:
            self._features[key] = features
        return features

    def _cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if not self._measures.supervised_logits:
            return cross_entropy(self._student.lm_head(hidden), labels)
        rows = (labels[0, 1:] != IGNORED).nonzero()[:, 0]
        return F.cross_entropy(self._student.lm_head(hidden[0, rows]), labels[0, rows + 1])

    def _signal(self, name: str, ours: Maps, inputs: Inputs) -> Tensor:
        if name == "reasoning":
            theirs = self._teacher_maps(name, inputs)
            wanted = (self._layers(name, model) for model in (self._student, self._teachers[name]))
            return full_maps(*([maps[i][:, None] for i in layers] for maps, layers in zip((ours, theirs), wanted, strict=True)))
        (layer,) = self._layers(name, self._student)
        return (_block(ours[layer], inputs) - self._target(name, inputs)).square().mean()

    def _target(self, name: str, inputs: Inputs) -> Tensor:
        """The teacher's text rows x vision columns [1, R, V]."""
        key = (name, id(inputs))
        if key in self._blocks:
            return self._blocks[key]
        (layer,) = self._layers(name, self._teachers[name])
        block = _block(self._teacher_maps(name, inputs)[layer], inputs)
        if self._measures.teacher_cache:
            self._blocks[key] = block
        return block

    def _teacher_maps(self, name: str, inputs: Inputs) -> Maps:
        teacher = self._teachers[name]
        with torch.no_grad():
            hidden, maps = self._forward(teacher, inputs, self._requests([name], teacher, inputs))
            if not self._measures.early_exit:
                teacher.lm_head(hidden)
        return maps

    def _gradients(self, losses: Mapping[str, Tensor]) -> dict[str, Gradient]:
        last = list(losses)[-1]
        return {name: self._gradient(loss, keep_graph=name != last) for name, loss in losses.items()}

    def _gradient(self, loss: Tensor, *, keep_graph: bool) -> Gradient:
        parameters = self._parameters
        if self._measures.plain_gradients:
            found = torch.autograd.grad(loss, parameters, retain_graph=keep_graph, materialize_grads=True, allow_unused=True)
            return list(found)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        return gradient

    def _update(self, gradients: Mapping[str, Gradient]) -> Gradient:
        anchor, *followers = gradients.values()
        order = self._rng.permutation(len(followers)).tolist()
        if not self._measures.coefficients:
            return agp(anchor, followers, order)
        rows = [anchor, *followers]
        gram = torch.tensor([[dot(a, b) for b in rows] for a in rows], dtype=torch.float64)
        weights = agp_coefficients(gram, [index + 1 for index in order]).tolist()
        return [sum(w * part for w, part in zip(weights, parts, strict=True)) for parts in zip(*rows, strict=True)]


def _block(attention: Tensor, inputs: Inputs) -> Tensor:
    """Text rows x vision columns of a whole map; what is a block already stays."""
    vision = inputs.vision_mask[0]
    return attention[:, ~vision][:, :, vision] if attention.shape[1] == len(vision) else attention
