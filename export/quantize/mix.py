"""Which MatMuls of a decoder of int4 have 8 bits: those where a byte saves most, until a size is reached.

What rounding one weight costs is foreseen from one pass forward and back, to second order (as SqueezeLLM does: Kim et al. 2023,
arXiv 2306.07629, section 4.1, but for whole rounded matrices, not for single weights):

    loss ≈ 1/2 mean over tokens of (g · δW x)²

    x: the layer's input at a token; δW: what rounding to the nearest changes; g: gradient of -log p(next token) with respect to
    the layer's output, where next tokens are drawn from the model's own predictions, so that this is the Fisher information of
    its answers, and the loss the divergence from them, in nats a token

T tokens, K inputs, N outputs, V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from drivekd.data.batch import Batch
from drivekd.models.decoder import run_decoder
from drivekd.quantization.form import WeightForm, quantized
from drivekd.quantization.layers import weight_of
from drivekd.quantization.linears import is_vision, linear_layers, matmul_name

from .frames import Frames
from .weights import image_features

MIX_HEADER = ["MatMul", "loss in 4 bits, nats a token", "in 8 bits", "share of weights", "bits"]
MOST_TOKENS = 2048  # two frames order the MatMuls as eight do
SHOWN = 12


@dataclass(frozen=True)
class MatMulCost:
    """weights: their number. losses: foreseen, in nats a token, by bits."""

    name: str
    weights: int
    losses: Mapping[int, float]


def foreseen_costs(model: PreTrainedModel, frames: Frames, block: int) -> list[MatMulCost]:
    """Of every MatMul of the decoder. The model's weights stay as they are, and take no gradients from now on."""
    model.requires_grad_(False)
    linears = {layer: linear for layer, linear in linear_layers(model).items() if not is_vision(layer)}
    wide = {layer: linear for layer, linear in linears.items() if weight_of(linear).shape[1] >= block}
    losses = {layer: dict.fromkeys((4, 8), 0.0) for layer in wide}
    tokens = 0
    for batch in frames.chosen:
        _add_losses(model, frames, batch, wide, block, losses)
        tokens += batch.num_tokens
        if tokens >= MOST_TOKENS:
            break
    costs: dict[str, MatMulCost] = {}
    for layer, found in losses.items():
        name, size = matmul_name(layer), weight_of(linears[layer]).numel()
        before = costs.get(name, MatMulCost(name, 0, dict.fromkeys(found, 0.0)))
        total = {bits: before.losses[bits] + loss / tokens for bits, loss in found.items()}
        costs[name] = MatMulCost(name, before.weights + size, total)
    return list(costs.values())


def _add_losses(
    model: Any,
    frames: Frames,
    batch: Batch,
    linears: Mapping[str, nn.Module],
    block: int,
    losses: Mapping[str, dict[int, float]],
) -> None:
    """Add up 1/2 (g · δW x)² over a batch's tokens."""

    def watch(layer: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            inputs = args[0].detach().flatten(0, -2)  # [T, K]

            def weigh(gradient: Tensor) -> None:
                weight = weight_of(module)
                for bits in losses[layer]:  # made anew for each batch: all of them would be twice the model
                    change = quantized(weight, WeightForm(bits, block)).dequantized() - weight
                    along = ((inputs @ change.T) * gradient.flatten(0, -2)).sum(1)  # [T]
                    losses[layer][bits] += 0.5 * float(along.square().sum())

            output.register_hook(weigh)  # type: ignore[no-untyped-call]

        return keep

    hooks = [linear.register_forward_hook(watch(layer)) for layer, linear in linears.items()]
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            features = image_features(model, frames, batch).detach().requires_grad_()
            hidden = run_decoder(model, batch.input_ids, batch.vision_mask, features, batch.attention_mask, batch.positions)
            logits = model.lm_head(hidden[batch.token_mask & ~batch.vision_mask])  # [T', V]
            drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
            F.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()


def chosen_for_eight(costs: Sequence[MatMulCost], bits: float, block: int) -> tuple[str, ...]:
    """Names of the MatMuls that have 8 bits when the mean over all weights, scales counted, may be `bits`.

    None where that is less than all of them have in 4."""
    total = sum(cost.weights for cost in costs)
    scales = 16 / block
    room = (bits - 4 - scales + 1e-6) * total  # 4.9 - 4.5 is a little less than 0.4
    chosen = []
    for cost in sorted(costs, key=lambda cost: (cost.losses[8] - cost.losses[4]) / cost.weights):
        if 4 * cost.weights <= room:
            room -= 4 * cost.weights
            chosen.append(cost.name)
    return tuple(sorted(chosen))


def mix_rows(costs: Sequence[MatMulCost], chosen: Sequence[str]) -> list[list[str]]:
    """Under MIX_HEADER, those that cost most in 4 bits first."""
    total = sum(cost.weights for cost in costs)
    ordered = sorted(costs, key=lambda cost: -cost.losses[4])
    rows = [
        [
            cost.name,
            f"{cost.losses[4]:.2e}",
            f"{cost.losses[8]:.2e}",
            f"{cost.weights / total:.1%}",
            "8" if cost.name in chosen else "4",
        ]
        for cost in ordered[:SHOWN]
    ]
    if rest := ordered[SHOWN:]:
        others = [f"{sum(cost.losses[bits] for cost in rest):.2e}" for bits in (4, 8)]
        eight = sum(cost.name in chosen for cost in rest)
        share = f"{sum(cost.weights for cost in rest) / total:.1%}"
        rows.append([f"{len(rest)} more, together", *others, share, f"8 in {eight} of them"])
    return rows
