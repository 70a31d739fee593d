"""One shard: a safetensors file of blocks, each with a checksum.

safetensors, since its reader maps the file, gives one block without touching the others, refuses a truncated or overlong file
from the header alone, and any tool opens it. A block's name is a hash of its key: 16 bytes in memory whatever the key's length.
The file's metadata holds the digest of the spec it was made under, and a CRC-32 for each block over spec, name, dtype, shape and
bytes. So a flipped bit in the header is found as surely as one in the data, and a shard copied from another store never passes.

The checksum is verified at every read (0.45 ms for a block of 0.92 MB) and not when the store opens: hashing 331 GB takes
minutes, and bytes that were good yesterday are no promise.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drivekd.errors import DataError, TrainingError

StoredDtype: TypeAlias = Literal["fp32", "fp16", "bf16"]
TORCH_DTYPES: dict[StoredDtype, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_OVERHEAD_BYTES = 320  # name, shape, offsets and checksum take 155-180 bytes; a shard's own header at most 130, once
_SPEC = "spec"  # the metadata's one key that is no block; names are 32 hex digits


def bytes_for(shape: Sequence[int], dtype: StoredDtype) -> int:
    """Bytes on disk that one block needs at most, its share of the headers included."""
    return math.prod(shape) * TORCH_DTYPES[dtype].itemsize + _OVERHEAD_BYTES


def block_name(key: str) -> bytes:
    """The 16 bytes a block goes by; among 10^9 keys two share them with probability 10^-21."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def stored_block(key: str, block: Tensor, dtype: StoredDtype) -> Tensor:
    """A contiguous copy of `block` on the CPU in `dtype`, rounded to nearest even.

    fp32 keeps every bit of an fp32, fp16 or bf16 block. fp16 errs by at most 2^-11 of a value, and by 2^-25 below 2^-14; bf16 by
    at most 2^-8 of a value. Raises TrainingError for a value that is not finite, or not in `dtype`: stored, it would poison every
    later run.
    """
    if not block.is_floating_point():
        raise ValueError(f"block {key!r}: a float tensor is stored, got {block.dtype}")
    stored = block.detach().to("cpu", TORCH_DTYPES[dtype], copy=True).contiguous()
    if torch.isfinite(stored).all():
        return stored
    if not torch.isfinite(block).all():
        raise TrainingError(f"block {key!r}: holds NaN or infinity, so it is not stored; look at the model that made it")
    raise TrainingError(
        f"block {key!r}: its largest magnitude {block.detach().abs().max():.4g} does not fit {dtype}, which ends at "
        f"{torch.finfo(stored.dtype).max:.4g}; store it as {'bf16 or fp32' if dtype == 'fp16' else 'fp32'}"
    )


def shard_from_blocks(blocks: Mapping[bytes, Tensor], digest: str) -> bytes:
    """The bytes of a shard. blocks: as stored_block makes them, by block_name. digest: of the spec they were made under."""
    named = {name.hex(): block for name, block in blocks.items()}
    return save(named, {_SPEC: digest, **{name: _checksum(name, block, digest) for name, block in named.items()}})


class Shard:
    """A shard on disk, memory-mapped."""

    def __init__(self, path: Path, digest: str) -> None:
        """Read the header alone. Raises DataError when the file is damaged, no shard, or of another spec."""
        self._path, self._digest = path, digest
        try:
            self.num_bytes = path.stat().st_size
            self._file = cast(Any, safe_open(path, "pt"))  # its methods are untyped
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        self._checksums: dict[str, str] = dict(self._file.metadata() or {})
        if self._checksums.pop(_SPEC, None) != digest:
            raise DataError(f"{path}: not a shard of this store, or its header is damaged")
        if self._checksums.keys() != set(self._file.keys()):
            raise DataError(f"{path}: its header is damaged")

    @property
    def names(self) -> list[bytes]:
        """Of its blocks, as `block_name` makes them."""
        return [bytes.fromhex(name) for name in self._checksums]

    def read(self, name: bytes) -> Tensor:
        """One block as a new fp32 tensor; no other part of the file is read. Raises DataError when it is damaged."""
        block = self._mapped(name.hex())
        if _checksum(name.hex(), block, self._digest) != self._checksums[name.hex()]:
            raise DataError(f"{self._path}: a block does not match its checksum")
        return block.to(torch.float32, copy=True)  # a view would change with its caller's writes, for all later readers

    def _mapped(self, name: str) -> Tensor:
        try:
            num_bytes = self._path.stat().st_size
            if num_bytes != self.num_bytes:  # touching a mapping behind the file's end kills the whole run with SIGBUS
                raise DataError(f"{self._path}: has {num_bytes} bytes, had {self.num_bytes} when it was opened")
            block: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self._path}: cannot be read ({error})") from error
        return block


def _checksum(name: str, block: Tensor, digest: str) -> str:
    header = f"{digest} {name} {block.dtype} {list(block.shape)}".encode()
    return f"{zlib.crc32(block.reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(header)):08x}"
