"""Where the student's weights lie: whole in every process, or a shard of each in every process (FSDP2). One face for both.

The recipe for shards, and why:

- every decoder layer is a unit; everything else that holds trainable weights is the root's: embeddings, head, norm, a vision
  tower that trains. Frozen vision towers stay whole in every process: they are small, and mostly their features are cached.
- a step calls the family's parts one by one, not the model; the root's forward therefore runs a function that does so.
- weights are gathered once a step and stay until the update (no resharding after forward or backward). A captured attention
  map is not the output of a unit: its gradient reaches the layer's weights before FSDP2 would gather them again, and
  "storage of size 0" is what it then finds (docs/method.md, "Capture of attention maps"). It also saves K of K + 1 gatherings.
  Masters, AdamW's moments and the K + 1 gradients are sharded always; a step holds the student's weights in fp32 besides.
- FSDP2 takes the mean of gradients over processes; ours are parts of one step's sum, so each loss is multiplied by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from drivekd.distill.training.parallel import Parallel
from drivekd.models import family_of, language_model

Result = TypeVar("Result")


class Placement(Protocol):
    """loss_scale: what each loss is multiplied by before its backward pass, so that gradients are sums over processes."""

    loss_scale: float

    def forward(self, function: Callable[[], Result]) -> Result:
        """Run a function that calls the student's parts; it returns every tensor that a backward pass starts from."""
        ...

    def release(self) -> None:
        """After a step's last pass, before the weights change."""
        ...


class Whole:
    """The Placement where every process has all of the student."""

    loss_scale = 1.0

    def forward(self, function: Callable[[], Result]) -> Result:
        return function()

    def release(self) -> None:
        """Nothing was gathered."""


class Shards:
    """The Placement where every process has a part of each weight of what trains. The parameters of the model become DTensors:
    name them anew."""

    def __init__(self, student: PreTrainedModel, parallel: Parallel) -> None:
        self.loss_scale = float(parallel.size)
        mesh = init_device_mesh(parallel.device.type, (parallel.size,))
        self._units: list[FSDPModule] = []
        for layer in language_model(student).layers:  # type: ignore[union-attr]
            self._units.append(fully_shard(layer, mesh=mesh, reshard_after_forward=False))
        self._root = _Root(student)
        self._units.append(fully_shard(self._root, mesh=mesh, reshard_after_forward=False))
        self._units[-1].set_reshard_after_backward(False)  # of all units: it is the root

    def forward(self, function: Callable[[], Result]) -> Result:
        result: Result = self._root(function)
        return result

    def release(self) -> None:
        for unit in self._units:
            unit.reshard()


class _Root(nn.Module):
    """Holds the parts that train, and runs whatever is to happen while they are gathered."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__()
        parts = family_of(student).parts(student).values()
        trained = [modules for modules in parts if any(p.requires_grad for module in modules for p in module.parameters())]
        self.parts = nn.ModuleList(module for modules in trained for module in modules)

    def forward(self, function: Callable[[], Result]) -> Result:
        return function()


def place(student: PreTrainedModel, parallel: Parallel) -> Placement:
    """Shard the student, or leave it whole; do it after loading weights and before naming parameters."""
    return Shards(student, parallel) if parallel.sharded else Whole()


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The whole of each tensor, on the host where it was sharded; empty without `keep`. All processes ask for the same."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = value
    return whole


@torch.no_grad()
def placed(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, as `like` lies: on its device, sharded where it is. All processes call it."""
    value = whole.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def whole_number(value: Tensor) -> float:
    """A scalar that was reduced over shards, or that was never sharded. All processes call it."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
