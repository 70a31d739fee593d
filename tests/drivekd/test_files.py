"""Files and directories arrive whole or not at all, also on a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from drivekd import __version__
from drivekd.errors import DrivekdError, UsageError
from drivekd.files import (
    refuse_non_empty,
    remove_leftovers,
    versions,
    whole_directory,
    whole_file,
    write_whole,
    write_whole_json,
)

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_then(folder: Path, error: BaseException) -> None:
    with whole_directory(folder) as temporary:
        (temporary / "weights").write_text("half")
        raise error


def test_a_directory_appears_with_everything_in_it(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "deep" / "final") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "deep" / "final").exists()
        assert temporary.parent == tmp_path / "deep"  # the same file system: a rename cannot be half done
    assert names(tmp_path / "deep") == ["final"]
    assert names(tmp_path / "deep" / "final") == ["a"]


def test_an_existing_directory_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with whole_directory(tmp_path / "final") as temporary:
            (temporary / content).touch()
    assert names(tmp_path / "final") == ["new"]


@pytest.mark.parametrize("error", [*FULL, ValueError("ours"), KeyboardInterrupt(), PermissionError(errno.EACCES, "no")])
def test_a_failure_leaves_the_old_one_and_no_temporary(tmp_path: Path, error: BaseException) -> None:
    with whole_directory(tmp_path / "final") as temporary:
        (temporary / "old").touch()
    with pytest.raises((type(error), DrivekdError)):
        write_then(tmp_path / "final", error)
    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["old"]


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(DrivekdError, match=r"final: no space left.*Free space and run again"):
        write_then(tmp_path / "final", error)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), SafetensorError("header too large")])
def test_other_failures_keep_their_own_words(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        write_then(tmp_path / "final", error)
    assert caught.value is error


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".final.999999.tmp").mkdir()
    (tmp_path / ".final-2.999999.tmp").mkdir()
    (tmp_path / ".final.999999.fp32.tmp").mkdir()
    others = [".final-2.999999.tmp", ".final.int8.999999.tmp", f".final.{os.getppid()}.tmp", ".final.json.tmp"]
    for other in others[1:3]:
        (tmp_path / other).mkdir()  # a sibling's, and a live process's
    (tmp_path / others[3]).touch()  # of the file final.json: its next writer takes it
    with whole_directory(tmp_path / "final"):
        pass
    assert names(tmp_path) == sorted([*others, "final"])


def test_two_writers_of_one_file_do_not_take_each_others_temporary(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with whole_file(path) as first:
        first.write_text("first")
        first.replace(path)  # another writer, of the same name, has begun and ended
        first.write_text("second")
    assert path.read_text() == "second"
    assert names(tmp_path) == ["config.yaml"]


def test_a_link_to_a_directory_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_directory(tmp_path / "link") as temporary:
        (temporary / "file").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["file"]


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_whole(path, "a: 1\n")
    inode = path.stat().st_ino
    write_whole(path, "a: 2\n")
    assert path.read_text() == "a: 2\n"
    assert path.stat().st_ino != inode  # another file took the name: a reader of the old one is not disturbed
    assert names(tmp_path) == ["config.yaml"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "versions.json"
    write_whole_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half\n" * 10_000 + "\ud800")  # a lone surrogate cannot be encoded
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["versions.json"]


def test_what_a_killed_writer_of_a_file_left_is_taken_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with whole_file(path) as temporary:
        temporary.touch()
    temporary.write_text("much more than half")
    write_whole(path, b"whole")
    assert names(tmp_path) == ["config.yaml"]
    assert path.read_bytes() == b"whole"


def test_writers_of_one_shared_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    with whole_file(path, shared=True) as one, whole_file(path, shared=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert names(tmp_path) == ["verdict.json"]
    assert path.read_text() == "one"  # the last to end; each of them was whole


def test_leftovers_of_shared_files_are_removed_when_they_are_old(tmp_path: Path) -> None:
    with whole_file(tmp_path / "verdict.json", shared=True) as old, whole_file(tmp_path / "verdict.json", shared=True) as young:
        for temporary in (old, young):
            temporary.touch()
        os.utime(old, (0, 0))
        remove_leftovers(tmp_path, age_s=3600)
        assert names(tmp_path) == [young.name]
        old.touch()


def test_a_file_may_be_written_beside_the_folder_that_it_goes_into(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with whole_file(tmp_path / "bundle" / "bundle.sig", beside=tmp_path / "bundle") as temporary:
        temporary.touch()
        assert names(tmp_path / "bundle") == []
    assert names(tmp_path / "bundle") == ["bundle.sig"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_permissions_are_the_wanted_ones_or_what_the_umask_leaves(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "wanted", "", mode=mode)
        write_whole(tmp_path / "usual", "")
    finally:
        os.umask(before)
    assert (tmp_path / "wanted").stat().st_mode & 0o777 == mode
    assert (tmp_path / "usual").stat().st_mode & 0o777 == 0o600


def test_a_place_that_holds_anything_is_refused(tmp_path: Path) -> None:
    refuse_non_empty(tmp_path / "none", "advice")
    refuse_non_empty(tmp_path, "advice")
    (tmp_path / ".hidden").touch()
    for path in (tmp_path, tmp_path / ".hidden"):
        with pytest.raises(UsageError, match="is not empty; advice") as caught:
            refuse_non_empty(path, "advice")
        assert str(path) in str(caught.value)


def test_versions_name_what_decides_numbers() -> None:
    import torch
    import transformers

    found = versions()
    assert found["drivekd"] == __version__
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert found["python"].startswith("3.")


def test_a_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.files.TRACKED_PACKAGES", ("numpy", "no-such-package"))
    assert set(versions()) == {"drivekd", "python", "platform", "numpy"}
