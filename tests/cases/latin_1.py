"""A process whose locale is Latin-1 (or ASCII, where that cannot be made): files are UTF-8 all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from places import ROOT

LOCALE = "en_US.ISO-8859-1"


def latin_1_environment(folder: Path) -> Mapping[str, str]:
    """Environment variables of such a process. The locale is made in `folder`: few machines have it."""
    settings = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    localedef = shutil.which("localedef")
    if localedef is not None:
        made = subprocess.run([localedef, "-i", "en_US", "-f", "ISO-8859-1", str(folder / LOCALE)], capture_output=True)
        if made.returncode == 0:
            return {**os.environ, **settings, "LOCPATH": str(folder), "LC_ALL": LOCALE}
    return {**os.environ, **settings, "LC_ALL": "C"}  # ASCII: no letter of the test's is in it, so that faults show as well


def utf_8_environment() -> Mapping[str, str]:
    """Of one that reads UTF-8 everywhere, with the same modules."""
    return {**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
