"""The Python of docs/runtime.md runs word for word."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from places import ROOT

if TYPE_CHECKING:
    from command_fixtures import SmallExport

pytestmark = pytest.mark.e2e


def test_documented_snippet(small_export: SmallExport, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "runtime.md").read_text(), re.DOTALL)
    monkeypatch.chdir(small_export.folder)
    (small_export.folder / "bundle").symlink_to(small_export.bundle)
    names: dict[str, Any] = {"image": np.full((90, 160, 3), 120, np.uint8)}
    exec(snippet, names)
    assert set(names["answers"]["planning"].structured) == {"actions", "reason", "probability", "complete"}
