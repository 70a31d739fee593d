"""Arrays as the bytes of an .npz file, the same bytes for the same arrays; numpy's own writer puts the date into them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Uncompressed, in the order given; ZipInfo's own date is fixed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.save(file, array, allow_pickle=False)
    return buffer.getvalue()
