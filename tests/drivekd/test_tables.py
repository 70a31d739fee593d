"""Tables show every character of every cell, whatever the cell holds."""

from __future__ import annotations

import pytest

from drivekd.tables import print_table, render_table

CELLS = ["[batch, 3, 448]", "[/x]", ":car:", "[bold]loud[/bold]", "Äpfel ≥ 3", "", "x" * 300]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_words_and_never_cut(cell: str) -> None:
    text = render_table("title", ["name", "value"], [["shape", cell]], width=80)
    assert cell.replace(" ", "") in "".join(text.replace("shape", "").replace("value", "").split())


@pytest.mark.parametrize("cell", CELLS[:4])
def test_a_title_and_a_header_are_words_too(cell: str) -> None:
    text = render_table(f"run {cell}", [f"column {cell}"], [["1"]])
    assert f"run {cell}" in text
    assert f"column {cell}" in text


def test_no_header_row_when_no_column_has_a_name() -> None:
    assert render_table("t", ["", ""], [["a", "1"]]).split() == ["t", "a", "1"]


def test_printing_goes_to_stdout_or_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("t", ["a"], [["1"]])
    print_table("u", ["b"], [["2"]], stderr=True)
    out, err = capsys.readouterr()
    assert out.split()[0] == "t"
    assert err.split()[0] == "u"


def test_a_pipe_gets_a_path_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/runs/" + "x" * 120 + "/final"
    print_table("t", ["path"], [[path]])
    assert path in capsys.readouterr().out
