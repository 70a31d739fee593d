"""A folder is one evaluation's: the same goes on, another is refused by what differs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drivekd.errors import DataError, UsageError
from drivekd.evaluate.predictions import IDENTITY_FILE, Identity


def test_the_same_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    first = Identity({"model": "sha256:1", "limit": None, "settings": ["clean"]}, {"model": "runs/a"})
    assert first.claim(tmp_path / "new") is False
    assert Identity(first.decides, {"model": "moved/a"}).claim(tmp_path / "new") is True
    other = Identity({"model": "sha256:2", "limit": None, "settings": ["clean"], "precision": "bf16"})
    with pytest.raises(UsageError) as raised:
        other.claim(tmp_path / "new")
    assert 'model is "sha256:2", was "sha256:1"; precision is "bf16", was not stated. Give a new --out' in str(raised.value)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is not empty; give a new --out"):
        Identity({}).claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"format": 2, "is": {}}'):
        (tmp_path / IDENTITY_FILE).write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"evaluation\.json"):
            Identity({}).claim(tmp_path)


def test_shards_that_begin_at_once_agree(tmp_path: Path) -> None:
    identity = Identity({"model": "sha256:1"})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: identity.claim(tmp_path / f"{number // 8}"), range(160)))
    assert all([path.name for path in folder.iterdir()] == [IDENTITY_FILE] for folder in tmp_path.iterdir())
