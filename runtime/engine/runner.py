"""The face of an inference engine: one graph, named tensors in, named tensors out.

A runner is a context manager: it acquires its engine in `__enter__` and frees it in `__exit__`. Outputs stay where the engine
put them (K/V never visits the host on its way to the next step); `.numpy()` brings one to the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class DeviceTensor(Protocol):
    """A tensor in the engine's memory. numpy(): a copy on the host. shape(): its dims, a list."""

    def numpy(self) -> Array: ...

    def shape(self) -> Any: ...

    def select(self, rows: Sequence[int]) -> DeviceTensor:
        """A copy with these rows in this order; on the device where the engine can."""
        ...


Feed: TypeAlias = Array | DeviceTensor


class Runner(Protocol):
    """One graph on one engine."""

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def infer(self, feeds: Mapping[str, Feed]) -> dict[str, DeviceTensor]:
        """Run the graph once. Raises RunnerError."""
        ...
