"""One training run in many processes: which one this is, sums and agreement over all, who computes what.

`accelerate launch` (or torchrun) starts the processes; accelerate's PartialState joins them, by NCCL on GPUs and by gloo on CPUs.
Two placements of the student, chosen by the launcher's configuration:

    replicas (DDP)     every process has all of it; gradients are summed once a step, so processes may run different micro-batches
    shards (FSDP2)     every process has a part of each weight; every forward and backward pass is a common act: `in_step`

All counts that losses are divided by are of the whole step, so that sums over processes are what one process would have.

W processes ("ranks" 0 .. W - 1), N numbers
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from drivekd.errors import ConfigError, DrivekdError, TrainingError
from drivekd.log import logger

PATIENCE = timedelta(hours=2)  # a rank may wait this long: for rank 0's checkpoint, or for the slowest part of the cache

Item = TypeVar("Item")
MicroBatch = TypeVar("MicroBatch")


@dataclass(frozen=True)
class Turn(Generic[MicroBatch]):
    """A micro-batch that a process runs. counts: false for one run to keep the others company; its losses are multiplied by 0."""

    micro_batch: MicroBatch
    counts: bool = True


@dataclass(frozen=True)
class Parallel:
    """This process among the run's. Without a launcher: rank 0 of 1, and nothing communicates."""

    device: torch.device
    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def leave(self) -> None:
        """At a run's end, together: a backend's threads abort a process that ends while they wait for one that has gone."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def sums(self, values: Sequence[float]) -> list[float]:
        """[N] numbers, each summed over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def any(self, flag: bool) -> bool:
        """Whether it is true in at least one process; the same answer in all."""
        return self.sums([float(flag)])[0] > 0

    def same_start(self, tensors: Sequence[Tensor]) -> None:
        """Give every process rank 0's values, in place: weights that are drawn at random, LoRA's, must not differ."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """All processes leave the block, or all raise: the one that failed its own error, the others TrainingError naming it.

        The block must not communicate. What is no DrivekdError ends its process, and the launcher then ends the others.
        """
        failure: DrivekdError | None = None
        try:
            yield
        except DrivekdError as error:
            failure = error
        messages: list[Any] = [None if failure is None else str(failure)]
        if self.size > 1:
            messages = [None] * self.size
            dist.all_gather_object(messages, None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for rank, message in enumerate(messages):
            if message is not None:
                raise TrainingError(f"stopped because process {rank} of {self.size} failed: {message}")

    def turns(
        self, micro_batches: Sequence[MicroBatch], cost: Callable[[MicroBatch], int], kind: Callable[[MicroBatch], Hashable]
    ) -> list[Turn[MicroBatch]]:
        """What this process runs of a step's micro-batches; every process asks with the same ones.

        cost: tokens. kind: what a backward pass does to the weights; shards run micro-batches of one kind at a time.
        """
        if self.sharded:
            return in_step(micro_batches, self.size, kind)[self.rank]
        return [Turn(micro_batch) for micro_batch in balanced(micro_batches, self.size, cost)[self.rank]]

    def part_of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of a list: neighbours stay together, since they often show the same frame."""
        start, end = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[start:end]


def join(device: str) -> Parallel:
    """Join the processes that a launcher started; device: training.device. Raises ConfigError for what cannot be.

    Call it once a process, before anything large is loaded; calling it again gives the same answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Parallel(resolve_device(device))
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"training.device = {device!r} names one device, but a launcher started several processes; use auto")
    sharded = _wants_shards()
    from accelerate import PartialState  # slow to import, and one process does not need it

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    if state.process_index > 0:
        logger.setLevel(logging.ERROR)  # the others would say the same once more
    return Parallel(resolve_device(device) if cpu else state.device, state.process_index, state.num_processes, sharded)


def resolve_device(name: str) -> torch.device:
    """auto -> CUDA where there is one. Raises ConfigError when CUDA is asked for and missing."""
    available = torch.cuda.is_available()
    if name.startswith("cuda") and not available:
        raise ConfigError(f"training.device = {name!r}, but torch {torch.__version__} finds no CUDA device; use cpu or auto")
    return torch.device("cuda" if name == "auto" and available else "cpu" if name == "auto" else name)


def _wants_shards() -> bool:
    """Read what `accelerate launch` was configured with. Raises ConfigError for what drivekd has no placement for."""
    from accelerate.utils import parse_flag_from_env

    for flag in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if parse_flag_from_env(flag):
            raise ConfigError(f"{flag} is set: drivekd trains with DDP or FSDP2; see configs/accelerate/")
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(f"fsdp_version is {version} in accelerate's configuration; drivekd needs fsdp_version: 2")
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError("fsdp_offload_params is on in accelerate's configuration; use training.offload_gradients instead")
    return True


def balanced(micro_batches: Sequence[MicroBatch], size: int, cost: Callable[[MicroBatch], int]) -> list[list[MicroBatch]]:
    """Deal out, the dearest first, each to whoever has least so far; one list for each of `size` processes."""
    hands: list[list[MicroBatch]] = [[] for _ in range(size)]
    loads = [0] * size
    for micro_batch in sorted(micro_batches, key=cost, reverse=True):
        poorest = loads.index(min(loads))
        hands[poorest].append(micro_batch)
        loads[poorest] += cost(micro_batch)
    return hands


def in_step(
    micro_batches: Sequence[MicroBatch], size: int, kind: Callable[[MicroBatch], Hashable]
) -> list[list[Turn[MicroBatch]]]:
    """One list for each of `size` processes, equally long, and the i-th turns of all are of one kind.

    FSDP2 gathers weights and reduces gradients in every pass, so all processes must reach the same weights in the same order.
    Where a kind has too few micro-batches, one of them is run again for nothing.
    """
    kinds: dict[Hashable, list[MicroBatch]] = {}
    for micro_batch in micro_batches:
        kinds.setdefault(kind(micro_batch), []).append(micro_batch)
    hands: list[list[Turn[MicroBatch]]] = [[] for _ in range(size)]
    for group in kinds.values():
        for start in range(0, len(group), size):
            row = group[start : start + size]
            for rank, hand in enumerate(hands):
                hand.append(Turn(row[rank]) if rank < len(row) else Turn(row[0], counts=False))
    return hands
