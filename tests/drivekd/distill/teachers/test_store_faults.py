"""The block store never gives a wrong block and never loses a finished one: damage, kills, full disks."""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from block_cases import SPEC, assert_holds, fill, value_of, warnings_of
from safetensors.torch import save_file
from two_processes import PRELOADED

import drivekd.files
from drivekd.distill.teachers.disk import RESERVE_BYTES, require_space
from drivekd.distill.teachers.shard import block_name, bytes_for
from drivekd.distill.teachers.store import BlockStore
from drivekd.errors import DrivekdError, TrainingError

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

# ------------------------------------------------------------------------------------------------ damage


def damaged_copies(data: bytes) -> Iterator[bytes]:
    """The file with one bit flipped, for each byte; cut at any length; and with bytes behind its end."""
    for place in range(len(data)):
        yield data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]
    yield from (data[:length] for length in range(len(data)))
    yield data + b"\0"


def test_no_damage_of_a_shard_gives_a_wrong_block_or_ends_the_run(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    shard = fill(tmp_path, names)
    num_missing = 0
    for data in damaged_copies(shard.read_bytes()):
        shard.write_bytes(data)
        store = BlockStore(tmp_path, SPEC)
        found = {name: store.get(name) for name in names}
        assert all(block is None or torch.equal(block, value_of(name)) for name, block in found.items())
        num_missing += any(block is None for block in found.values())
    assert num_missing > 0.9 * 2 * len(data)  # only a flipped blank of the header's padding may go unnoticed


def test_a_header_that_is_whole_but_wrong_gives_no_block(tmp_path: Path) -> None:
    with BlockStore(tmp_path, SPEC) as store:
        for name in ("a", "b"):
            store.put(name, torch.arange(6.0).reshape(2, 3) + ord(name))
    (shard,) = store.directory.glob("shard*")
    data = shard.read_bytes()
    one, other = (block_name(name).hex().encode() for name in ("a", "b"))
    swapped = data.replace(one, b"?" * 32).replace(other, one).replace(b"?" * 32, other)
    for wrong in (data.replace(b"[2,3]", b"[3,2]"), swapped, data.replace(b'"F32"', b'"I32"')):
        assert wrong != data
        shard.write_bytes(wrong)
        store = BlockStore(tmp_path, SPEC)
        assert store.num_blocks == 2  # nothing to see when it is opened
        assert store.get("a") is None and store.get("b") is None


def test_damage_is_said_once_a_shard_with_its_name_and_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [name for name in "abcdefgh" if value_of(name).numel()]
    shard = fill(tmp_path, names)
    data = shard.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    shard.write_bytes(data[:header] + bytes(byte ^ 1 for byte in data[header:]))
    with warnings_of(caplog) as said:
        store = BlockStore(tmp_path, SPEC)
        assert [store.get(name) for name in names] == [None] * len(names)
        store.refresh()
    assert len(said) == 1 and str(shard) in said[0] and "checksum" in said[0] and "Delete this file" in said[0]
    assert store.num_blocks == 0


@pytest.mark.parametrize("reopened", [True, False])
def test_a_damaged_block_is_put_again_and_found_behind_the_damaged_shard(tmp_path: Path, reopened: bool) -> None:
    shard = fill(tmp_path, ["a", "b"])
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    store = BlockStore(tmp_path, SPEC)
    (lost,) = [name for name in ("a", "b") if store.get(name) is None]
    assert lost not in store
    store.put(lost, value_of(lost))
    store.flush()
    assert_holds(BlockStore(tmp_path, SPEC) if reopened else store, {"a", "b"})


def test_a_block_survives_while_one_of_its_copies_does(tmp_path: Path) -> None:
    stores = [BlockStore(tmp_path, SPEC, writer=rank) for rank in range(3)]
    for store in stores:
        store.put("a", value_of("a"))
        store.flush()
    for shard in sorted(stores[0].directory.glob("shard*"))[:2]:
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    store = BlockStore(tmp_path, SPEC)
    assert_holds(store, {"a"})
    assert store.num_blocks == 1


@pytest.mark.parametrize("change", [Path.unlink, lambda path: os.truncate(path, 20), lambda path: path.write_bytes(b"x" * 9000)])
@pytest.mark.parametrize("read_before", [True, False])
def test_a_shard_lost_or_cut_under_a_running_store_is_missing(
    tmp_path: Path, change: Callable[[Path], object], read_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with BlockStore(tmp_path, SPEC) as store:
        for name in ("a", "b"):
            store.put(name, torch.ones(50_000))  # pages enough: a mapping is cut by whole pages
    (shard,) = store.directory.glob("shard*")
    if read_before:
        assert store.get("a") is not None  # now it is mapped: touching what is no longer there would kill the process
    change(shard)
    with warnings_of(caplog) as said:
        assert store.get("a") is None and store.get("b") is None
    assert len(said) == 1 and str(shard) in said[0]


def test_foreign_files_do_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = fill(tmp_path, ["a"]).parent
    with BlockStore(tmp_path, {**SPEC, "teacher": "other"}) as other:
        for name in ("a", "b"):
            other.put(name, torch.full((2, 2), 666.0))
    for shard in other.directory.glob("shard*"):
        shutil.copy(shard, directory / "shard-0-000000-00000000.safetensors")  # sorts before ours
    save_file({"a": torch.ones(3)}, directory / "shard-foreign.safetensors")
    (directory / "shard-folder.safetensors").mkdir()
    (directory / "shard-empty.safetensors").touch()
    (directory / "notes.txt").write_text("mine")
    (directory / ".hidden.tmp").write_text("half")
    with warnings_of(caplog) as said:
        store = BlockStore(tmp_path, SPEC)
        assert_holds(store, {"a"})
        assert "b" not in store
        store.refresh()
    assert store.num_blocks == 1 and len(said) == 4
    assert (directory / "notes.txt").exists()


def test_old_leftovers_are_removed_and_young_ones_kept(tmp_path: Path) -> None:
    directory = fill(tmp_path, ["a"]).parent
    old, young = directory / ".shard-0-1.safetensors.aa.tmp", directory / ".shard-1-1.safetensors.bb.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, time.time() - 7200))
    assert_holds(BlockStore(tmp_path, SPEC), {"a"})
    assert not old.exists() and young.exists()


# ------------------------------------------------------------------------------------------------ kills


forks = mp.get_context("forkserver")  # a fresh process without this one's threads, in milliseconds once torch is loaded
forks.set_forkserver_preload(PRELOADED)


def start(target: Callable[..., None], *arguments: Any) -> Any:
    process = forks.Process(target=target, args=arguments)
    process.start()
    return process


def write_for_ever(root: Path, first: int, acknowledge: Connection) -> None:
    """Flush blocks and say after each flush how many are safe. Only a kill ends it."""
    store = BlockStore(root, SPEC, writer=first % 2, shard_bytes=3000)
    for number in range(first, first + 10**9):
        store.put(str(number), value_of(str(number)))
        if number % 3 == 0:
            store.flush()
            acknowledge.send(number)


def newest(receiver: Connection) -> int:
    number = -1
    while receiver.poll(0):
        try:
            number = receiver.recv()
        except EOFError:
            break
    return number


def test_a_kill_at_any_moment_leaves_whole_shards_and_everything_flushed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pause = random.Random(0)
    flushed: set[str] = set()
    for life in range(5):
        receiver, sender = forks.Pipe(duplex=False)
        process = start(write_for_ever, tmp_path, life * 10**6, sender)
        sender.close()
        assert receiver.poll(60), "the writer never flushed"
        time.sleep(pause.random() / 20)
        process.kill()
        process.join()
        flushed |= {str(number) for number in range(life * 10**6, newest(receiver) + 1)}
        with warnings_of(caplog) as said:
            store = BlockStore(tmp_path, SPEC)
            assert_holds(store, flushed)
        assert said == []
    assert store.num_blocks >= len(flushed) >= 5  # each life flushed once at least


def die_at(root: Path, moment: str) -> None:
    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with BlockStore(root, SPEC) as store:
        store.put("new", value_of("new"))
        owner = {"fsync": os, "replace": Path, "_sync_directory": drivekd.files}[moment]
        setattr(owner, moment, die)


@pytest.mark.parametrize("moment", ["fsync", "replace", "_sync_directory"])
def test_a_kill_inside_a_flush_leaves_the_shard_whole_or_absent(
    tmp_path: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, ["old"])
    process = start(die_at, tmp_path, moment)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with warnings_of(caplog) as said, BlockStore(tmp_path, SPEC) as store:
        assert_holds(store, {"old"})
        assert ("new" in store) == (moment == "_sync_directory")
        store.put("new", value_of("new"))
    assert said == []
    assert_holds(BlockStore(tmp_path, SPEC), {"old", "new"})


def write_some(root: Path, rank: int) -> None:
    with BlockStore(root, SPEC, writer=rank, shard_bytes=2000) as store:
        for number in range(rank, 120, 2):
            store.put(str(number), value_of(str(number)))
            store.put("everyone's", value_of("everyone's"))


def test_processes_write_at_once(tmp_path: Path) -> None:
    processes = [start(write_some, tmp_path, rank) for rank in range(2)]
    early = BlockStore(tmp_path, SPEC)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    early.refresh()
    everything = {*map(str, range(120)), "everyone's"}
    for store in (early, BlockStore(tmp_path, SPEC)):
        assert store.num_blocks == len(everything)
        assert_holds(store, everything)


def test_a_shard_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (calls.append("rename"), replace(path, target)))
    fill(tmp_path, ["a"])
    assert calls == ["fsync", "rename", "fsync"] * 2  # spec.json, then the shard; the last fsync is of the directory


# ------------------------------------------------------------------------------------------------ full disks


def fill_a_full_disk(root: Path, results: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # the kernel refuses in the middle of the write
    store = BlockStore(root, SPEC)
    store.put("small", torch.ones(10))
    store.flush()
    store.put("large", torch.ones(1_000_000))
    try:
        store.flush()
    except DrivekdError as error:
        results.send(str(error))
    readable = [name for name in ("small", "large") if store.get(name) is not None]
    results.send((readable, sorted(path.name for path in store.directory.iterdir())))


def test_a_disk_that_is_full_in_the_middle_of_a_shard_loses_nothing(tmp_path: Path) -> None:
    receiver, sender = forks.Pipe(duplex=False)
    process = start(fill_a_full_disk, tmp_path, sender)
    process.join(60)
    said = receiver.recv()
    assert "File too large" in said and "4.0 MB wanted" in said and "MB free" in said and "free space" in said
    readable, files = receiver.recv()
    assert readable == ["small", "large"]  # the large one from the buffer
    assert len(files) == 2 and files[0].startswith("shard-0-000000-") and files[1] == "spec.json"
    assert BlockStore(tmp_path, SPEC).num_blocks == 1


def test_a_root_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = BlockStore(tmp_path / "file" / "cache", SPEC)
    store.put("a", torch.ones(1))
    with pytest.raises(TrainingError, match=r"could not be written .*Not a directory"):
        store.flush()


def set_free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free_bytes))


def test_space_is_refused_before_the_reserve_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, RESERVE_BYTES + 5_000_000)
    require_space(tmp_path / "not" / "there", 5_000_000, "the cache")
    with pytest.raises(
        TrainingError, match=r"the cache needs 8\.0 MB and 1,073\.7 MB must stay free.* has 1,078\.7 MB .*Free 3\.0 MB"
    ):
        require_space(tmp_path / "not" / "there", 8_000_000, "the cache")
    assert not (tmp_path / "not").exists()


def test_a_flush_without_room_keeps_the_blocks_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlockStore(tmp_path, SPEC, shard_bytes=3 * bytes_for([100], "fp32"))
    set_free(monkeypatch, RESERVE_BYTES)
    for number in range(3):
        store.put(str(number), torch.full((100,), float(number)))
    for _ in range(2):
        with pytest.raises(TrainingError, match="a shard of the block store needs"):
            store.put("one more", torch.zeros(100))
    assert store.num_blocks == 3 and not store.directory.exists()  # memory stays bounded
    monkeypatch.undo()
    store.close()
    assert BlockStore(tmp_path, SPEC).num_blocks == 3


def put_then_raise(root: Path, error: BaseException) -> None:
    with BlockStore(root, SPEC) as store:
        store.put("a", value_of("a"))
        raise error


def test_what_ended_the_run_is_not_hidden_by_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_free(monkeypatch, 0)
    with warnings_of(caplog) as said, pytest.raises(TrainingError, match="loss is NaN"):
        put_then_raise(tmp_path, TrainingError("loss is NaN"))
    assert len(said) == 1 and "must stay free" in said[0]


def test_blocks_computed_before_a_failure_are_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        put_then_raise(tmp_path, KeyboardInterrupt())
    assert_holds(BlockStore(tmp_path, SPEC), {"a"})
