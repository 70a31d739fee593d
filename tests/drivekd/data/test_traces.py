"""Traces of training data: what marks a question as seen, what does not, and the file they travel in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from drivekd.data.traces import FILE_NAME, overlapping, read_traces, traces_of
from drivekd.errors import DataError
from drivekd.sample import Sample

NUSCENES = "n015-2018-08-03-15-00-36+0800__CAM_FRONT__1533280042612460"
SEEN = Sample("a.json, record 1", "planning", "What is safe?", "Brake.", (Path("a/1.jpg"),), scene="s1", frame="f1")
OTHER = Sample("b.json, record 1", "planning", "Is it free?", "No.", (Path("b/1.jpg"),), scene="s2", frame="f2")


@pytest.mark.parametrize(
    ("changes", "marked"),
    [
        ({}, False),
        ({"scene": "s1"}, True),
        ({"frame": "f1"}, True),
        ({"question": "What is safe?", "answer": "Brake."}, False),  # every frame is asked this
        ({"scene": "f1", "frame": "s1"}, False),  # a kind is compared with itself
        ({"scene": "", "frame": ""}, False),
    ],
)
def test_what_marks_a_question_as_seen(changes: dict[str, str], marked: bool) -> None:
    assert overlapping(traces_of([SEEN, replace(SEEN, scene="", frame="")]), [replace(OTHER, **changes)]) == [marked]


@pytest.mark.parametrize("name", [NUSCENES, "9afb9daf-81ca742d"])
def test_a_picture_named_once_in_the_world_is_known_in_another_folder_and_format(name: str) -> None:
    traces = traces_of([replace(SEEN, images=(Path(f"x/{name}.jpg"),))])
    there, running = replace(OTHER, images=(Path(f"BitError/{name}.png"),)), replace(OTHER, images=(Path("a/1.jpg"),))
    assert overlapping(traces, [there, running]) == [True, False]


def test_contents_are_known_under_another_name_where_they_were_read(tmp_path: Path) -> None:
    for name, content in (("1.jpg", b"one"), ("2.jpg", b"one"), ("3.jpg", b"three")):
        (tmp_path / name).write_bytes(content)
    seen = replace(SEEN, images=(tmp_path / "1.jpg", tmp_path / "gone.jpg"))
    asked = [replace(OTHER, images=(tmp_path / name,)) for name in ("2.jpg", "3.jpg", "gone.jpg")]
    assert overlapping(traces_of([seen], contents=True), asked) == [True, False, False]
    assert overlapping(traces_of([seen]), asked) == [False, False, False]


def test_the_file_brings_back_every_hash_and_no_text(tmp_path: Path) -> None:
    traces = traces_of([SEEN, OTHER, replace(OTHER, question="half an emoji \ud83d")])
    traces.write(tmp_path / FILE_NAME)
    back = read_traces(tmp_path / FILE_NAME)
    for kind in ("scenes", "frames", "names", "contents", "questions"):
        assert np.array_equal(getattr(back, kind), getattr(traces, kind)), kind
    assert (len(back.scenes), len(back.questions)) == (2, 3)
    assert b"safe" not in (tmp_path / FILE_NAME).read_bytes()


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    weights, text = tmp_path / "model.safetensors", tmp_path / "text.safetensors"
    save_file({"scenes": np.zeros(3, np.float32)}, weights)
    text.write_text("no tensors")
    for path in (weights, text, tmp_path / "none.safetensors"):
        with pytest.raises(DataError, match=path.name):
            read_traces(path)
