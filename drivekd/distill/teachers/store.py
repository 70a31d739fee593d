"""The store under the teacher cache: small float tensors ("blocks") under text keys, on disk, for days and many processes.

    ROOT/<kind>-<16 hex of the spec's SHA-256>/     one directory a spec: another teacher, processor or signal is another one
        spec.json                                   what the blocks were made from, for people and for hash collisions
        shard-<writer>-<number>-<random>.safetensors

A shard appears whole and is never touched again, so any number of processes write and read at once, and a kill leaves at most an
ignored temporary file. `random` keeps two runs apart that both call themselves writer 0. What cannot be trusted is missing, never
wrong: a damaged shard or block is logged once and its keys can be put again, into a new shard.
A block exists once by contract: writers of the same key write the same values. If they do not, either may be read.
The index costs about 0.1 kB of memory a block. A store belongs to one thread.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from drivekd.distill.teachers.disk import require_space, write_durable
from drivekd.distill.teachers.shard import Shard, StoredDtype, block_name, bytes_for, shard_from_blocks, stored_block
from drivekd.errors import DataError, TrainingError
from drivekd.files import LEFTOVER_AGE_S, remove_leftovers
from drivekd.log import logger

SHARD_BYTES = 64 << 20  # what a kill can lose; 331 GB are then 5,000 files
_FORMAT = 1
_SPEC_FILE = "spec.json"
_SHARD_GLOB = "shard-*.safetensors"
_KIND = re.compile(r"[A-Za-z0-9_-]+")
_DIRECTORY_NAME = re.compile(r"[A-Za-z0-9_-]+-[0-9a-f]{16}")
_MAX_OPEN_SHARDS = 256  # opening one again costs 0.3 ms; each open one holds address space and its header


class BlockStore:
    """Blocks by key. A context manager: leaving it writes what is buffered.

    with BlockStore(root, {"kind": "attention", "teacher": digest, "layers": [12]}, dtype="fp16") as store:
        if (rows := store.get(key)) is None:
            store.put(key, rows := compute())
    """

    def __init__(
        self,
        root: Path,
        spec: Mapping[str, Any],
        *,
        writer: int = 0,
        dtype: StoredDtype = "fp32",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Open the store of `spec` under `root`; nothing is written before the first flush.

        spec: plain JSON values that decide the blocks' values; spec["kind"] names the directory. dtype is part of it by itself.
        writer: the distributed rank. shard_bytes: how much is buffered at most (one block may be larger).
        Raises DataError when the directory's spec.json is unreadable or of another spec, ValueError for a spec without a kind.
        """
        self.directory = store_directory(root, spec, dtype)
        self._spec_text = _spec_text(spec, dtype)
        self._digest = hashlib.sha256(self._spec_text.encode()).hexdigest()
        self._writer, self._dtype, self._shard_bytes = writer, dtype, shard_bytes
        self._buffer: dict[bytes, Tensor] = {}
        self._buffered_bytes = 0
        self._shards: list[Path] = []
        self._shards_bytes = 0
        self._seen: set[str] = set()
        self._warned: set[Path] = set()
        self._index: dict[bytes, int] = {}  # name -> place in _shards
        self._other_copies: dict[bytes, list[int]] = {}  # used when the indexed copy is damaged
        self._open_shards: dict[int, Shard] = {}  # least recently read first
        _check_spec_file(self.directory, self._spec_text)
        remove_leftovers(self.directory, age_s=LEFTOVER_AGE_S)
        self.refresh()

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            return self.close()
        try:
            self.close()
        except TrainingError as lost:  # what ended the run is the error to show, not what it did to the cache
            logger.warning("%s", lost)

    @property
    def num_blocks(self) -> int:
        """Blocks that can be read, the buffered ones included."""
        return len(self._index) + len(self._buffer)

    @property
    def num_bytes(self) -> int:
        """Bytes of this store's shards on disk."""
        return self._shards_bytes

    def __contains__(self, key: str) -> bool:
        """Whether the block is indexed; a damaged one is until `get` has met it."""
        name = block_name(key)
        return name in self._buffer or name in self._index

    def get(self, key: str) -> Tensor | None:
        """The block as a new fp32 tensor on the CPU; None when it was never stored, or is damaged in every copy."""
        name = block_name(key)
        if name in self._buffer:
            return self._buffer[name].to(torch.float32, copy=True)
        while (number := self._index.get(name)) is not None:
            try:
                return self._open(number).read(name)
            except DataError as error:
                self._warn_once(self._shards[number], error)
                self._forget_copy(name)
        return None

    def put(self, key: str, block: Tensor) -> None:
        """Keep a copy of `block` (any shape, any device); a key that is stored already keeps its first block.

        Raises TrainingError when a value is not finite or does not fit the store's dtype, and as `flush` does.
        """
        name = block_name(key)
        if name in self._buffer or name in self._index:
            return
        stored = stored_block(key, block, self._dtype)
        num_bytes = bytes_for(stored.shape, self._dtype)
        if self._buffered_bytes + num_bytes > self._shard_bytes:
            self.flush()
        self._buffer[name] = stored
        self._buffered_bytes += num_bytes

    def flush(self) -> None:
        """Write the buffered blocks as one new shard; on return they survive a power cut.

        Raises TrainingError when the disk has no room; the blocks stay buffered, so that it can be called again.
        """
        if not self._buffer:
            return
        data = shard_from_blocks(self._buffer, self._digest)
        require_space(self.directory, len(data), "a shard of the block store")
        if not (self.directory / _SPEC_FILE).exists():
            write_durable(self.directory / _SPEC_FILE, self._spec_text.encode())
        path = self.directory / f"shard-{self._writer}-{len(self._shards):06d}-{secrets.token_hex(4)}.safetensors"
        write_durable(path, data)
        self._add(path, list(self._buffer), len(data))

    def refresh(self) -> None:
        """Take in the shards that other writers have finished since."""
        for path in sorted(self.directory.glob(_SHARD_GLOB)):
            if path.name not in self._seen:
                self._seen.add(path.name)
                self._take_in(path)

    def close(self) -> None:
        """Flush, and let go of the files. Raises as `flush` does."""
        try:
            self.flush()
        finally:
            self._open_shards.clear()

    def _take_in(self, path: Path) -> None:
        try:
            shard = Shard(path, self._digest)
        except DataError as error:
            self._warn_once(path, error)
        else:
            self._add(path, shard.names, shard.num_bytes)

    def _add(self, path: Path, names: Iterable[bytes], num_bytes: int) -> None:
        number = len(self._shards)
        self._shards.append(path)
        self._seen.add(path.name)
        self._shards_bytes += num_bytes
        for name in names:
            if name in self._index:
                self._other_copies.setdefault(name, []).append(number)
            else:
                self._index[name] = number
            if name in self._buffer:  # written, by us now or by another rank meanwhile
                self._buffered_bytes -= bytes_for(self._buffer.pop(name).shape, self._dtype)

    def _open(self, number: int) -> Shard:
        shard = self._open_shards.pop(number, None) or Shard(self._shards[number], self._digest)
        self._open_shards[number] = shard
        if len(self._open_shards) > _MAX_OPEN_SHARDS:
            del self._open_shards[next(iter(self._open_shards))]
        return shard

    def _forget_copy(self, name: bytes) -> None:
        others = self._other_copies.pop(name, [])
        del self._index[name]
        if others:
            self._index[name] = others[0]
            self._other_copies[name] = others[1:]

    def _warn_once(self, path: Path, error: DataError) -> None:
        if path not in self._warned:
            self._warned.add(path)
            logger.warning("%s; what it held and cannot be trusted counts as missing. Delete this file to end the warning", error)


def store_directory(root: Path, spec: Mapping[str, Any], dtype: StoredDtype) -> Path:
    """Where the blocks of `spec` live; it need not exist. Raises ValueError for a spec without a usable "kind"."""
    kind = spec.get("kind")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f'spec["kind"] must be a word of letters, digits, - and _, got {kind!r}')
    return root / f"{kind}-{hashlib.sha256(_spec_text(spec, dtype).encode()).hexdigest()[:16]}"


def stale_directories(root: Path, current: Iterable[Path]) -> list[tuple[Path, int]]:
    """Stores under `root` that are none of `current` (see store_directory), with their bytes on disk, by name.

    This run does not need them; another configuration may. Nothing is deleted, and folders that are no stores are not listed.
    """
    wanted = {path.name for path in current}
    found = [path for path in sorted(root.glob("*")) if _is_store(path) and path.name not in wanted]
    return [(path, sum(file.stat().st_size for file in path.iterdir())) for path in found]


def _is_store(path: Path) -> bool:
    if not path.is_dir() or not _DIRECTORY_NAME.fullmatch(path.name):
        return False
    return (path / _SPEC_FILE).exists() or any(path.glob(_SHARD_GLOB))


def _spec_text(spec: Mapping[str, Any], dtype: StoredDtype) -> str:
    """Canonical JSON: the same spec gives the same text, whatever the order of its keys."""
    document = {"format": _FORMAT, "dtype": dtype, "spec": dict(spec)}
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n"


def _check_spec_file(directory: Path, expected: str) -> None:
    path = directory / _SPEC_FILE
    if not path.exists():  # a new store, or the file was lost: every shard names its spec as well
        return
    try:
        found = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete {directory}, and its blocks are computed again") from error
    if found != expected:
        raise DataError(
            f"{path}: is not what this run's blocks are made from (damaged, edited by hand, or of another store): "
            f"expected {expected!r}, found {found[:1000]!r}. Delete {directory}, and its blocks are computed again"
        )
