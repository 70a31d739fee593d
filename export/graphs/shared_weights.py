"""Weights of several graphs in one file, equal bytes once.

ONNX calls it external data: a graph's initializer says file, offset and length. Offsets are multiples of 4096, so that a file may
be mapped into memory page by page.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import onnx_ir as ir

from drivekd.files import whole_file

MIN_BYTES = 1024  # smaller ones stay in the graph: scalars and shapes, which engines want to see while they build
ALIGNMENT = 4096

_Place = tuple[int, int]  # offset and length


def share_weights(folder: Path, files: Sequence[str], data_file: str) -> None:
    """Move the initializers of folder/files from 1 kB on into folder/data_file and remove the data files that they were in.

    Raises OSError when the disk is full; the graphs are then half-written: work in a folder that can be thrown away.
    """
    models = {name: ir.load(folder / name) for name in files}
    before = {path for model in models.values() for path in _external_files(model, folder)}
    write_models(models, folder, data_file)
    for path in before - {folder / data_file}:
        path.unlink()


def write_models(models: Mapping[str, ir.Model], folder: Path, data_file: str) -> None:
    """Write each model as folder/name with its weights in folder/data_file."""
    # Weights may still lie in the old file of that name: it is replaced when all are written.
    with whole_file(folder / data_file) as temporary, WeightFile(temporary, data_file) as weights:
        for model in models.values():
            for value in model.graph.initializers.values():
                if value.const_value is not None and value.const_value.nbytes >= MIN_BYTES:
                    value.const_value = weights.add(value.const_value)
    for name, model in models.items():
        ir.save(model, folder / name)


class WeightFile:
    """A file of weights being written; a context manager. path: where it is written; location: what graphs will call it."""

    def __init__(self, path: Path, location: str) -> None:
        self._path, self._location = path, location
        self._by_tensor: dict[int, tuple[ir.TensorProtocol, _Place]] = {}  # the tensor is kept: its id must not be used again
        self._by_digest: dict[bytes, _Place] = {}

    def __enter__(self) -> WeightFile:
        self._file: BinaryIO = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write the tensor's bytes, unless they are there already; what a graph says in its place."""
        if id(tensor) not in self._by_tensor:
            self._by_tensor[id(tensor)] = tensor, self._written(tensor.tobytes())
        offset, length = self._by_tensor[id(tensor)][1]
        assert tensor.name is not None
        return ir.ExternalTensor(
            self._location,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            base_dir=self._path.parent,
        )

    def _written(self, data: bytes) -> _Place:
        digest = hashlib.sha256(data).digest()
        if digest not in self._by_digest:
            end = self._file.seek(0, os.SEEK_END)
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            self._file.write(bytes(offset - end))
            self._file.write(data)
            self._by_digest[digest] = offset, len(data)
        return self._by_digest[digest]


def _external_files(model: ir.Model, folder: Path) -> set[Path]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return {folder / tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
