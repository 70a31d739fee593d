"""Digests change with what they stand for, and with nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivekd.files import checkpoint_digest, file_digest, json_digest

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner), max_leaves=8
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text(f"what {name} says")
    return tmp_path


def test_a_files_digest_is_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 3_000_000)
    assert file_digest(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest() == file_digest(path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Also where the size stays the same."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    before, time_ns = file_digest(path), path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(time_ns + 1, time_ns + 1))
    assert file_digest(path) == hashlib.sha256(b"two").hexdigest() != before


def test_a_file_changed_within_one_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    """Equal size and equal time of change: only its age says that it may have changed since."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    before, time_ns = file_digest(path), path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(time_ns, time_ns))
    assert file_digest(path) != before


def test_a_file_at_rest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    digest = file_digest(path)
    monkeypatch.setattr(Path, "open", None)
    assert file_digest(path) == digest


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "gone")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_checkpoints_digest_is_of_what_decides_its_answers(checkpoint: Path, name: str) -> None:
    before = checkpoint_digest(checkpoint)
    assert before.startswith("sha256:")
    (checkpoint / name).write_text("something else")
    changed = checkpoint_digest(checkpoint)
    (checkpoint / name).rename(checkpoint / f"other-{name}")
    assert len({before, changed, checkpoint_digest(checkpoint)}) == 3


def test_a_checkpoints_digest_leaves_out_the_rest(checkpoint: Path, tmp_path: Path) -> None:
    before = checkpoint_digest(checkpoint)
    (checkpoint / "README.md").write_text("a better text")
    assert checkpoint_digest(checkpoint) == before


@given(value=VALUES)
def test_equal_json_has_one_digest_whatever_the_order_of_keys(value: object) -> None:
    def turned(part: object) -> object:
        if isinstance(part, dict):
            return {key: turned(part[key]) for key in reversed(part)}
        return [turned(item) for item in part] if isinstance(part, list) else part

    assert json_digest(value) == json_digest(turned(value))


@given(first=VALUES, second=VALUES)
def test_different_json_has_different_digests(first: object, second: object) -> None:
    assert (json_digest(first) == json_digest(second)) == _same(first, second)


def _same(first: object, second: object) -> bool:
    """Equal as JSON: True is not 1, and the order of keys does not matter."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return type(first) is type(second) and first == second
