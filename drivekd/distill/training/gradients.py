"""The raw gradients of a step, one row for each objective; their Gram matrix; their weighted sum.

A row is a dict, parameter -> gradient, and a gradient is the very tensor that autograd left in `.grad`: nothing is copied, a
row costs memory for the parameters that its loss reaches and no others (perception reaches layer 0 alone), and a row that a
run never fills costs nothing. The backward pass hands over one parameter at a time, so that a second micro-batch needs room
for the largest parameter, not for all.

Three placements, one face:
    one process         rows hold whole gradients
    replicas (DDP)      rows hold this rank's gradients; `all_reduce` sums them before the Gram matrix, since AGP is not linear
    shards (FSDP2)      rows hold this rank's shards of gradients that FSDP2 has reduced; `gram` sums the [N, N] matrix over ranks

N rows, P trainable scalars, n rows that reach one parameter, C scalars of a chunk
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

GRAM_CHUNK = (
    1 << 20
)  # scalars of a row in float64 at once: 8 MB. Measured on 1e8 scalars x 4 rows, 2 cores: 1 << 14 takes 1.3 times as long
BUCKET = 1 << 25  # scalars all-reduced at once (128 MB): one call for each small parameter would cost more than the sum


class GradientRows:
    """N gradients over the same parameters, accumulated in fp32 over micro-batches.

    parameters: every parameter of the model that requires a gradient; under FSDP2 after `fully_shard`, which replaces them.
    offload: keep the rows in host memory (pinned), for a device that cannot hold N times its trainable parameters in fp32. Each
    gradient leaves the device as soon as the backward pass has made it. It changes nothing where the parameters are on the host.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_rows: int, *, offload: bool = False) -> None:
        self._parameters = list(parameters)
        self._sharded = _all_sharded(self._parameters)
        self._device = self._parameters[0].device
        self._offload = offload and self._device.type != "cpu"
        self._rows: list[dict[int, Tensor]] = [{} for _ in range(num_rows)]
        self._update: dict[int, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """What the rows and the accumulated update hold now, on this rank."""
        return sum(tensor.nbytes for held in (*self._rows, self._update) for tensor in held.values())

    def zero(self) -> None:
        """Forget the rows; the accumulated update stays."""
        for row in self._rows:
            row.clear()

    def add(self, row: int, loss: Tensor, *, retain_graph: bool) -> None:
        """Add the gradient of a scalar loss to one row; every `.grad` is None afterwards.

        Under FSDP2 this communicates: all ranks call it for the same rows in the same order.
        """
        for parameter in self._parameters:
            parameter.grad = None  # the last update, which backward() would add to
        with self._taking(row):
            loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def collect(self, row: int) -> None:
        """Move every `.grad` into the row, for a backward pass that somebody else ran; every `.grad` is None afterwards."""
        for index in range(len(self._parameters)):
            self._take(row, index)

    @contextmanager
    def _taking(self, row: int) -> Iterator[None]:
        """Gradients move into the row as they are made. FSDP2 calls these hooks too, with the reduced shard."""
        handles = [self._take_when_made(row, index) for index in range(len(self._parameters))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _take_when_made(self, row: int, index: int) -> RemovableHandle:
        register = self._parameters[index].register_post_accumulate_grad_hook
        handle: RemovableHandle = register(lambda _: self._take(row, index))  # type: ignore[no-untyped-call]
        return handle

    @torch.no_grad()
    def _take(self, row: int, index: int) -> None:
        """autograd owns what it puts into `.grad`: no other tensor shares it, so that it can become the row."""
        gradient = self._parameters[index].grad
        if gradient is None:
            return
        self._parameters[index].grad = None
        local = _local(gradient).float()
        held = self._rows[row].get(index)
        if held is not None:
            held.add_(local.to(held.device))
        else:
            self._rows[row][index] = _pinned_copy(local) if self._offload else local

    @torch.no_grad()
    def all_reduce(self) -> None:
        """Sum the rows over all ranks, between replicas; without torch.distributed, or with shards, there is nothing to do.

        Losses must be normalised by counts of the whole step over all ranks. Ranks may have filled different rows.
        """
        if self._sharded or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        for bucket in self._buckets(self._agree_on_filled()):
            flat = torch.cat([tensor.reshape(-1).to(self._device) for tensor in bucket])
            dist.all_reduce(flat)
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def _agree_on_filled(self) -> list[tuple[int, int]]:
        """(row, parameter) filled on any rank, in the same order on all; zeros where this rank has none."""
        filled = torch.tensor([[int(index in row) for index in range(len(self._parameters))] for row in self._rows])
        filled = filled.to(self._device, torch.int32)
        dist.all_reduce(filled, dist.ReduceOp.MAX)
        places = [(int(row), int(index)) for row, index in filled.nonzero()]
        for row, index in places:
            if index not in self._rows[row]:
                zeros = torch.zeros_like(self._parameters[index], dtype=torch.float32)
                self._rows[row][index] = _pinned_copy(zeros) if self._offload else zeros
        return places

    def _buckets(self, places: Sequence[tuple[int, int]]) -> Iterator[list[Tensor]]:
        bucket: list[Tensor] = []
        for row, index in places:
            tensor = self._rows[row][index]
            if bucket and sum(held.numel() for held in bucket) + tensor.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        if bucket:
            yield bucket

    @torch.no_grad()
    def gram(self) -> Tensor:
        """All dot products, [N, N] float64 on the host: fp32 sums lose nine digits on the way."""
        gram = torch.zeros(len(self._rows), len(self._rows), dtype=torch.float64, device=self._device)
        scratch = gram.new_empty(len(self._rows), GRAM_CHUNK)
        for index in range(len(self._parameters)):
            rows = [row for row, held in enumerate(self._rows) if index in held]
            if rows:
                flat = [self._rows[row][index].reshape(-1) for row in rows]
                gram[torch.tensor(rows)[:, None], torch.tensor(rows)] += _dot_products(flat, scratch)
        if self._sharded:
            _sum_over_shards(gram, self._parameters[0])
        return gram.cpu()

    def write_update(self, coefficients: Tensor | None = None) -> None:
        """Set every `.grad` to the weighted sum of the rows, coefficients [N], plus what `accumulate` holds. Empties both."""
        if coefficients is not None:
            self.accumulate(coefficients)
        for index, parameter in enumerate(self._parameters):
            parameter.grad = _as_gradient(self._update.pop(index, None), parameter)

    @torch.no_grad()
    def accumulate(self, coefficients: Tensor) -> None:
        """update += coefficients [N] @ rows, and the rows are forgotten: projection of each micro-batch by itself."""
        weights = coefficients.tolist()
        for index in range(len(self._parameters)):
            for row, weight in zip(self._rows, weights, strict=True):
                gradient = row.pop(index, None)
                if gradient is None:
                    continue
                held = self._update.get(index)
                if held is None:
                    self._update[index] = gradient.mul_(weight)  # in place: the update needs no room of its own
                else:
                    held.add_(gradient, alpha=weight)


def _all_sharded(parameters: Sequence[nn.Parameter]) -> bool:
    """Raises ValueError when some parameters are sharded and some are not: their dot products cannot be summed in one go."""
    if not parameters:
        raise ValueError("no trainable parameters; expected at least one")
    sharded = sum(isinstance(parameter, DTensor) for parameter in parameters)
    if sharded not in (0, len(parameters)):
        raise ValueError(
            f"{sharded} of {len(parameters)} trainable parameters are sharded; expected all or none (fully_shard the root)"
        )
    return sharded > 0


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _pinned_copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _dot_products(flat: Sequence[Tensor], scratch: Tensor) -> Tensor:
    """[n, n] float64 of n flat tensors, by way of scratch [N, C] float64 on the device that multiplies."""
    num_rows, size = len(flat), flat[0].numel()
    products = scratch.new_zeros(num_rows, num_rows)
    for start in range(0, size, GRAM_CHUNK):
        block = scratch[:num_rows, : min(GRAM_CHUNK, size - start)]  # [n, C]
        for row, tensor in enumerate(flat):
            block[row].copy_(tensor[start : start + GRAM_CHUNK].to(scratch.device))
        products += block @ block.T
    return products


def _sum_over_shards(gram: Tensor, parameter: nn.Parameter) -> None:
    """In place, over the mesh dimensions that shard: along one that replicates (HSDP) every rank holds the same sum already."""
    assert isinstance(parameter, DTensor)
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_shard():
            dist.all_reduce(gram, group=parameter.device_mesh.get_group(dimension))


def _as_gradient(update: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """Zeros where no loss reached the parameter, so that AdamW's moments decay there as everywhere."""
    if update is None:
        return torch.zeros_like(parameter)
    local = update.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return local
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())
