"""The block store is a dict that survives reopening: properties over any use by one or several writers, numbers, directories."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from block_cases import DTYPES, SHAPES, SPEC, assert_holds, fill, value_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from drivekd.distill.teachers.shard import StoredDtype, bytes_for
from drivekd.distill.teachers.store import BlockStore, stale_directories, store_directory
from drivekd.errors import DataError, TrainingError

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("one_thread")]

keys = st.one_of(st.sampled_from(["a", "b", "c", "é/ü?#", "x" * 5000, ""]), st.text(max_size=5))


# ------------------------------------------------------------------------------------------------ as a dict


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), shard_bytes=st.sampled_from([1, 1000, 1 << 20]))
def test_any_sequence_of_puts_flushes_and_reopenings_is_a_dict(data: st.DataObject, dtype: StoredDtype, shard_bytes: int) -> None:
    with TemporaryDirectory() as folder:
        model: dict[str, Tensor] = {}
        store = BlockStore(Path(folder), SPEC, dtype=dtype, shard_bytes=shard_bytes)
        for step, action in enumerate(
            data.draw(st.lists(st.sampled_from(["put", "put", "get", "flush", "reopen"]), max_size=25))
        ):
            key = data.draw(keys)
            if action == "put":
                block = torch.full(SHAPES[step % len(SHAPES)], float(step))  # another one each time: the first must win
                store.put(key, block)
                model.setdefault(key, block)
            elif action == "flush":
                store.flush()
            elif action == "reopen":
                store.close()
                store = BlockStore(Path(folder), SPEC, dtype=dtype, writer=step, shard_bytes=shard_bytes)
            assert (key in store) == (key in model)
            assert store.num_blocks == len(model)
            found = store.get(key)
            assert (found is None) == (key not in model)
            assert found is None or torch.equal(found, model[key])
        for key, block in model.items():
            found = store.get(key)
            assert found is not None and found.shape == block.shape and torch.equal(found, block)


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["put", "put", "flush", "refresh"]), keys), max_size=30))
def test_several_writers_see_each_other_after_flush_and_refresh(steps: list[tuple[int, str, str]]) -> None:
    with TemporaryDirectory() as folder:
        stores = [BlockStore(Path(folder), SPEC, writer=rank, shard_bytes=2000) for rank in range(3)]
        put: set[str] = set()
        for rank, action, key in steps:
            if action == "put":
                stores[rank].put(key, value_of(key))
                put.add(key)
            else:
                (stores[rank].flush if action == "flush" else stores[rank].refresh)()
            assert_holds(stores[rank], {key} if action == "put" else set())
        for store in stores:
            store.close()
        for store in [*stores, BlockStore(Path(folder), SPEC)]:
            store.refresh()
            assert store.num_blocks == len(put)
            assert_holds(store, put)


def test_two_runs_with_the_same_writer_number_do_not_overwrite_each_other(tmp_path: Path) -> None:
    with BlockStore(tmp_path, SPEC) as one, BlockStore(tmp_path, SPEC) as other:
        one.put("a", value_of("a"))
        other.put("b", value_of("b"))
    assert_holds(BlockStore(tmp_path, SPEC), {"a", "b"})


def test_a_block_that_another_writer_finished_is_not_written_twice(tmp_path: Path) -> None:
    with BlockStore(tmp_path, SPEC, writer=1) as late:
        late.put("a", value_of("a"))
        fill(tmp_path, ["a"])
        late.refresh()
        assert late.num_blocks == 1
    assert len(list(late.directory.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("flushed", [True, False])
def test_callers_and_store_share_no_memory(tmp_path: Path, flushed: bool) -> None:
    store = BlockStore(tmp_path, SPEC)
    block = torch.ones(2, 3)
    store.put("a", block)
    if flushed:
        store.flush()
    block.fill_(7)
    for _ in range(2):
        found = store.get("a")
        assert found is not None and torch.equal(found, torch.ones(2, 3))
        found.fill_(9)


def test_a_transposed_view_with_a_gradient_can_be_put(tmp_path: Path) -> None:
    block = torch.arange(12.0, requires_grad=True).reshape(3, 4)[1:].T
    with BlockStore(tmp_path, SPEC) as store:
        store.put("a", block)
    found = BlockStore(tmp_path, SPEC).get("a")
    assert found is not None and torch.equal(found, block) and not found.requires_grad


def test_the_buffer_stays_below_shard_bytes(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, SPEC, shard_bytes=3 * bytes_for([100], "fp32"))
    for number in range(7):
        store.put(str(number), torch.zeros(100))
    assert [len(load_file(path)) for path in sorted(store.directory.glob("shard*"))] == [3, 3]
    assert store.num_blocks == 7


def test_empty_blocks_fill_the_buffer_too(tmp_path: Path) -> None:
    store = BlockStore(tmp_path, SPEC, shard_bytes=10_000)  # else a million of them make a header that safetensors refuses
    for number in range(100):
        store.put(str(number), torch.zeros(0, 256))
    assert len(list(store.directory.glob("shard*"))) > 1


def test_opening_and_reading_write_nothing(tmp_path: Path) -> None:
    with BlockStore(tmp_path / "cache", SPEC) as store:
        assert store.get("a") is None and "a" not in store and store.num_blocks == store.num_bytes == 0
    assert not (tmp_path / "cache").exists()


@given(
    blocks=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), min_size=1, max_size=20), dtype=st.sampled_from(DTYPES)
)
@settings(max_examples=20, deadline=None)
def test_the_planned_bytes_bound_those_on_disk(blocks: list[list[int]], dtype: StoredDtype) -> None:
    with TemporaryDirectory() as folder:
        with BlockStore(Path(folder), SPEC, dtype=dtype) as store:
            for number, shape in enumerate(blocks):
                store.put(str(number), torch.zeros([side % 9 for side in shape]))
        shards = sum(path.stat().st_size for path in store.directory.glob("shard*"))
        assert store.num_bytes == shards == BlockStore(Path(folder), SPEC, dtype=dtype).num_bytes
        assert shards <= sum(bytes_for([side % 9 for side in shape], dtype) for shape in blocks)


# ------------------------------------------------------------------------------------------------ numbers


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
@settings(max_examples=30, deadline=None)
def test_fp32_keeps_every_bit(values: list[float]) -> None:
    with TemporaryDirectory() as folder:
        block = torch.tensor(values)
        with BlockStore(Path(folder), SPEC) as store:
            store.put("a", block)
        found = BlockStore(Path(folder), SPEC).get("a")
        assert found is not None and torch.equal(found.view(torch.int32), block.view(torch.int32))  # -0.0 and subnormals too


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [("fp16", 2.0**-11, 2.0**-25), ("bf16", 2.0**-8, 2.0**-134)],  # half a unit in the last place; of the least subnormal
)
def test_rounding_is_what_the_docstring_says(tmp_path: Path, dtype: StoredDtype, relative: float, absolute: float) -> None:
    block = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).softmax(0).mul(100)  # as attention: 1e-5 .. 1e-1
    block[:2] = torch.tensor([1e-9, 65504.0 if dtype == "fp16" else 1e38])
    with BlockStore(tmp_path, SPEC, dtype=dtype) as store:
        store.put("a", block)
    found = BlockStore(tmp_path, SPEC, dtype=dtype).get("a")
    assert found is not None and found.dtype == torch.float32
    assert ((found - block).abs().double() <= torch.maximum(block.double() * relative, torch.tensor(absolute))).all()
    assert not torch.equal(found, block)


@pytest.mark.parametrize(
    ("block", "dtype", "said"),
    [
        (torch.tensor([1.0, -7e4]), "fp16", r"7e\+04 does not fit fp16, which ends at 6.55e\+04; store it as bf16 or fp32"),
        (torch.tensor([3.4e38]), "bf16", "does not fit bf16.*store it as fp32"),
        (torch.tensor([1e300], dtype=torch.float64), "fp32", "does not fit fp32"),
        (torch.tensor([float("nan")]), "fp32", "holds NaN or infinity"),
        (torch.tensor([float("inf")]), "bf16", "holds NaN or infinity"),
    ],
)
def test_a_value_that_cannot_be_kept_is_refused(tmp_path: Path, block: Tensor, dtype: StoredDtype, said: str) -> None:
    with BlockStore(tmp_path, SPEC, dtype=dtype) as store:
        with pytest.raises(TrainingError, match=f"(?s)block 'frame 7': .*{said}"):
            store.put("frame 7", block)
        assert "frame 7" not in store and store.num_blocks == 0


def test_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"float tensor is stored, got torch.int64"):
        BlockStore(tmp_path, SPEC).put("a", torch.arange(3))


# ------------------------------------------------------------------------------------------------ which directory


def test_another_spec_or_dtype_is_another_directory_and_key_order_is_not(tmp_path: Path) -> None:
    specs = [SPEC, {**SPEC, "teacher": "sha256:cd"}, {**SPEC, "layers": [12]}, {**SPEC, "kind": "vision"}]
    places = {store_directory(tmp_path, spec, dtype) for spec in specs for dtype in DTYPES}
    assert len(places) == len(specs) * len(DTYPES)
    assert store_directory(tmp_path, dict(reversed(SPEC.items())), "fp32") == store_directory(tmp_path, SPEC, "fp32")
    shard = fill(tmp_path, ["a"])
    assert shard.parent == store_directory(tmp_path, SPEC, "fp32") and shard.parent.name.startswith("attention-")
    assert json.loads((shard.parent / "spec.json").read_text())["spec"] == SPEC
    assert "a" not in BlockStore(tmp_path, specs[1])


@pytest.mark.parametrize("kind", [None, "", "a/b", "..", 3])
def test_a_spec_needs_a_kind_that_names_a_directory(tmp_path: Path, kind: object) -> None:
    with pytest.raises(ValueError, match="kind"):
        BlockStore(tmp_path, {"kind": kind})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"format": 1, "dtype": "fp32", "spec": {"kind": "attention"}}\n'])
def test_a_damaged_edited_or_foreign_spec_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = fill(tmp_path, ["a"]).parent / "spec.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)spec\.json: .*[Dd]elete .*attention-\w+, and its blocks are computed again"):
        BlockStore(tmp_path, SPEC)


def test_an_unreadable_spec_file_is_refused(tmp_path: Path) -> None:
    path = fill(tmp_path, ["a"]).parent / "spec.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"spec\.json: cannot be read"):
        BlockStore(tmp_path, SPEC)


def test_a_lost_spec_file_is_written_again(tmp_path: Path) -> None:
    path = fill(tmp_path, ["a"]).parent / "spec.json"
    content = path.read_bytes()
    path.unlink()
    fill(tmp_path, ["b"])
    assert path.read_bytes() == content
    assert_holds(BlockStore(tmp_path, SPEC), {"a", "b"})


def test_stale_directories_are_the_other_stores_and_nothing_else(tmp_path: Path) -> None:
    other = {**SPEC, "teacher": "old"}
    fill(tmp_path, ["a"])
    with BlockStore(tmp_path, other) as store:
        store.put("a", torch.zeros(1000))
    (tmp_path / "my-photos").mkdir()
    (tmp_path / "photos-0123456789abcdef").mkdir()
    (tmp_path / "file-0123456789abcdef").touch()
    stale = stale_directories(tmp_path, [store_directory(tmp_path, SPEC, "fp32")])
    assert stale == [(store.directory, store.num_bytes + (store.directory / "spec.json").stat().st_size)]
    assert stale_directories(tmp_path / "nowhere", []) == []


# ------------------------------------------------------------------------------------------------ memory


def mapped_bytes(path: Path) -> tuple[int, int]:
    """(mapped, of these in memory) bytes of `path` in this process."""
    size = resident = 0
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            ours = fields[-1] == str(path)
        elif ours and fields[0] in ("Size:", "Rss:"):
            size += int(fields[1]) * 1024 * (fields[0] == "Size:")
            resident += int(fields[1]) * 1024 * (fields[0] == "Rss:")
    return size, resident


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_reading_a_block_does_not_read_its_shard(tmp_path: Path) -> None:
    with BlockStore(tmp_path, SPEC) as store:
        for number in range(32):
            store.put(str(number), torch.full((1 << 18,), float(number)))  # 1 MiB each
    (shard,) = store.directory.glob("shard*")
    store = BlockStore(tmp_path, SPEC)
    assert mapped_bytes(shard) == (0, 0)  # an open store holds no file
    assert store.get("17") is not None
    size, resident = mapped_bytes(shard)
    assert size >= shard.stat().st_size > 32 << 20
    assert (1 << 20) <= resident <= (8 << 20)  # the block, and the up to 2 MiB that the kernel maps around a fault
    store.close()
    assert mapped_bytes(shard) == (0, 0)


def test_only_so_many_shards_are_open_and_all_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivekd.distill.teachers.store._MAX_OPEN_SHARDS", 2)
    names = list("abcdef")
    for name in names:
        fill(tmp_path, [name])
    store = BlockStore(tmp_path, SPEC)
    assert_holds(store, names + names[::-1] + ["a", "f"] * 3)
    assert len(store._open_shards) == 2
