"""Layers of a tower are rounded one after the other, each on what the rounded ones before it give.

Two streams of hidden states go through the tower side by side: `exact`, as the float model has them, and `given`, as the rounded
layers do. Within a layer, linear layers with one input (query, key and value; gate and up) are rounded together, in the order in
which they run; each sees what those before it in the layer have lost.

Any module is a layer here whose first argument and (first) result are hidden states: how transformers calls it is recorded, not
known. T tokens, K inputs of a linear layer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .form import Quantized, WeightForm, quantized, rounded
from .gptq import InputStatistics, quantized_by_data


@dataclass(frozen=True)
class Call:
    """How a layer was called for a sample, its hidden states left out."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """The layer's hidden states for others."""
        output = layer(hidden, *self.args, **self.kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


@dataclass(frozen=True)
class Stage:
    """A layer of the tower and what is rounded in it. linears: by name in the graphs. calls: one for each sample.

    last: nothing behind it is rounded, so that its results are of no use.
    """

    layer: nn.Module
    linears: Mapping[str, nn.Module]
    calls: Sequence[Call]
    last: bool = False


class _Reached(Exception):
    """The part of a layer that was wanted has run."""


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[tuple[list[list[Call]], list[Tensor]]]:
    """Within it, each run of the tower adds a Call for every layer, and its hidden states in front of the first one."""
    calls: list[list[Call]] = [[] for _ in layers]
    hidden: list[Tensor] = []

    def hook(number: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls[number].append(Call(rest, others))
            if number == 0:
                hidden.append(first)

        return keep

    hooks = [layer.register_forward_pre_hook(hook(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        yield calls, hidden
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def round_stages(
    stages: Sequence[Stage], exact: list[Tensor], given: list[Tensor], forms: Mapping[str, WeightForm], *, half: bool = False
) -> dict[str, Quantized]:
    """Round every linear layer that `forms` names; its weight becomes what is computed with. Returns them by name.

    exact, given: hidden states in front of the first stage, one tensor a sample; both lists are used up.
    """
    found: dict[str, Quantized] = {}
    for stage in stages:
        linears = {name: linear for name, linear in stage.linears.items() if name in forms}
        groups = input_groups(stage, linears, exact[0])
        wanted = [linears[group[0]] for group in groups]
        inputs, outputs = _inputs(stage, wanted, exact, stop=stage.last)
        for group, exact_inputs in zip(groups, inputs, strict=True):
            ((given_inputs,), _) = _inputs(stage, [linears[group[0]]], given, stop=True)
            statistics = _statistics(given_inputs, exact_inputs)
            found.update(_rounded_together({name: linears[name] for name in group}, forms, statistics, half))
        if not stage.last:
            exact[:] = outputs
            given[:] = [call(stage.layer, hidden) for call, hidden in zip(stage.calls, given, strict=True)]
    return found


@torch.no_grad()
def round_to_nearest(
    linears: Mapping[str, nn.Module],
    forms: Mapping[str, WeightForm],
    scales: Mapping[str, Tensor] = MappingProxyType({}),
    *,
    half: bool = False,
) -> dict[str, Quantized]:
    """The same without samples. scales: of layers whose scales are known."""
    found = {}
    for name, linear in linears.items():
        if name in forms:
            weight = weight_of(linear)
            if name in scales:
                found[name] = Quantized(rounded(weight, scales[name], forms[name]), scales[name], forms[name])
            else:
                found[name] = quantized(weight, forms[name], half=half)
            set_weight(linear, found[name].dequantized())
    return found


def weight_of(linear: nn.Module) -> Tensor:
    """[out, in], float32; of a convolution whose kernel is as large as its step, flattened."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach().flatten(1)


def set_weight(linear: nn.Module, weight: Tensor) -> None:
    """A parameter of its own: what the old one was tied to keeps it."""
    old = linear.weight
    assert isinstance(old, Tensor)
    linear.weight = nn.Parameter(weight.reshape(old.shape), requires_grad=False)


def input_groups(stage: Stage, linears: Mapping[str, nn.Module], hidden: Tensor) -> list[list[str]]:
    """Names of linear layers with the same input, in the order in which they run. hidden: of the first sample."""
    order: list[tuple[str, Tensor]] = []
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: order.append((name, args[0])))
        for name, linear in linears.items()
    ]
    try:
        stage.calls[0](stage.layer, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[tuple[list[str], Tensor]] = []
    for name, value in order:
        if groups and groups[-1][1] is value:
            groups[-1][0].append(name)
        else:
            groups.append(([name], value))
    return [names for names, _ in groups]


def _inputs(
    stage: Stage, wanted: Sequence[nn.Module], hidden: Sequence[Tensor], *, stop: bool
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Inputs [T, K] of the wanted layers for each sample, and the stage's results; stop: none, and nothing behind the last."""
    inputs: list[list[Tensor]] = [[] for _ in wanted]

    def hook(number: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[number].append(args[0].reshape(-1, args[0].shape[-1]))
            if stop and number == len(wanted) - 1:
                raise _Reached

        return keep

    hooks = [module.register_forward_pre_hook(hook(number)) for number, module in enumerate(wanted)]
    outputs = []
    try:
        for call, state in zip(stage.calls, hidden, strict=True):
            try:
                outputs.append(call(stage.layer, state))
            except _Reached:
                continue
    finally:
        for handle in hooks:
            handle.remove()
    return inputs, outputs


def _statistics(given: Sequence[Tensor], exact: Sequence[Tensor]) -> InputStatistics:
    statistics = InputStatistics.none(given[0].shape[1], shifted=True)
    for pair in zip(given, exact, strict=True):
        statistics.add(*pair)
    return statistics


def _rounded_together(
    linears: Mapping[str, nn.Module], forms: Mapping[str, WeightForm], inputs: InputStatistics, half: bool
) -> dict[str, Quantized]:
    """Layers of one input and, mostly, one form: one below the other, as outputs do not mind each other."""
    found: dict[str, Quantized] = {}
    for form in dict.fromkeys(forms[name] for name in linears):
        names = [name for name in linears if forms[name] == form]
        weights = [weight_of(linears[name]) for name in names]
        whole = quantized_by_data(torch.cat(weights), form, inputs, half=half)
        sizes = [len(weight) for weight in weights]
        parts = zip(names, torch.split(whole.values, sizes), torch.split(whole.scales, sizes), strict=True)
        for name, values, scales in parts:
            found[name] = Quantized(values.contiguous(), scales.contiguous(), form)
            set_weight(linears[name], found[name].dequantized())
    return found
