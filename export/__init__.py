"""From a checkpoint to a verified bundle.

Names that need torch are imported when they are asked for: `drivekd.export.trt.engines` runs on a car without torch.
"""

if __name__ != "drivekd.export":
    raise ImportError("import drivekd.export")

from typing import TYPE_CHECKING

from .parity.table import ParityRow, ParityTable
from .trt.engines import engines_from_bundle

if TYPE_CHECKING:
    from .bundle import bundle_from_checkpoint

__all__ = ["ParityRow", "ParityTable", "bundle_from_checkpoint", "engines_from_bundle"]


def __getattr__(name: str) -> object:
    if name == "bundle_from_checkpoint":
        from .bundle import bundle_from_checkpoint

        return bundle_from_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
