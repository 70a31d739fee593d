"""How much memory there is and was used, and what to lower when it was not enough."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from drivekd.config import RunConfig

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # a container's
# What torch and oneDNN say when the host has no more; neither has a type of its own for it.
HOST_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is full, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in HOST_MESSAGES)


def peak_bytes(device: torch.device) -> int:
    """The most that this process held: tensors on a GPU, everything on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def total_bytes(device: torch.device) -> int:
    """What the device has; of a host the least of its memory, the container's and this process's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    if CGROUP_LIMIT.is_file() and (text := CGROUP_LIMIT.read_text(encoding="utf-8").strip()).isdigit():
        limits.append(int(text))
    return min(limits)


def smaller_settings(config: RunConfig, device: torch.device) -> list[tuple[str, str]]:
    """Settings (key, value) that need less memory, the cheapest in time first. Empty: this run is as small as settings make it.

    Halving what is in memory at once halves its activations; the other ones say what they save in `drivekd.config`.
    """
    training, student = config.training, config.student
    found: list[tuple[str, str]] = []
    if training.micro_batch_size > 1:
        found.append(("training.micro_batch_size", str(training.micro_batch_size // 2)))
    if training.packing != "none":
        found.append(("training.max_pack_tokens", str(training.max_pack_tokens // 2)))
    if not student.gradient_checkpointing:
        found.append(("student.gradient_checkpointing", "true"))
    if not training.offload_gradients and device.type == "cuda":
        found.append(("training.offload_gradients", "true"))
    if config.teachers.paths() and config.teachers.precision != "bf16" and training.precision == "fp32":
        found.append(("teachers.precision", "bf16"))
    if config.teachers.paths() and config.teachers.device == "student" and device.type == "cuda":
        found.append(("teachers.device", "cpu"))
    if student.lora is None and "language_model" in student.train:
        found.append(("student.lora", "{rank: 16}"))
    return found


def advice(config: RunConfig, device: torch.device) -> str:
    """One sentence: used, there, and what to lower."""
    used, there = peak_bytes(device) / 1e6, total_bytes(device) / 1e6
    settings = (
        ", ".join(f"{key}={value}" for key, value in smaller_settings(config, device)) or "a smaller model, or another device"
    )
    return f"out of memory on {device}: {used:,.0f} of {there:,.0f} MB used at the peak. What helps, cheapest first: {settings}"
