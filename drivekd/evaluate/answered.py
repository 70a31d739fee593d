"""Where `drivekd.answered` was found before training validated on answers, too."""

from drivekd.answered import Answered, Given

__all__ = ["Answered", "Given"]
