"""A bundle's files when its weights would not fit into memory twice: large ones are read again when an engine wants them.

They come from the descriptor that was verified, so no file is opened twice, and are hashed again when they are read: what an
engine gets are bytes with the digest of the manifest, or there is an error.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping


class DeferredFiles(MutableMapping[str, bytes]):
    """Verified bytes by name. What is deleted, or let go with the mapping, is closed."""

    def __init__(self, held: Mapping[str, bytes], descriptors: Mapping[str, int], read: Callable[[int, str], bytes]) -> None:
        """held: the small files. descriptors: of the large ones, open, now this mapping's. read(descriptor, name): the bytes,
        verified; raises BundleError."""
        self._held = dict(held)
        self._descriptors = dict(descriptors)
        self._read = read
        weakref.finalize(self, _close_all, self._descriptors)

    def __getitem__(self, name: str) -> bytes:
        descriptor = self._descriptors.get(name)
        return self._held[name] if descriptor is None else self._read(descriptor, name)

    def __setitem__(self, name: str, data: bytes) -> None:
        if name in self:
            del self[name]
        self._held[name] = data

    def __delitem__(self, name: str) -> None:
        if name in self._descriptors:
            os.close(self._descriptors.pop(name))
        else:
            del self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._held or name in self._descriptors  # the base class would read the file

    def __iter__(self) -> Iterator[str]:
        yield from (*self._held, *self._descriptors)

    def __len__(self) -> int:
        return len(self._held) + len(self._descriptors)


def _close_all(descriptors: Mapping[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
