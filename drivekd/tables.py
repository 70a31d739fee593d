"""Tables for a person: rich on a terminal, plain aligned columns in a file or a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, stderr: bool = False) -> None:
    """Print one table; a cell is never cut, long ones wrap."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console = Console(stderr=stderr, width=160)
    console.print(make_table(title, header, rows))


def make_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The table itself. Everything is wrapped in Text: [brackets] and :colons: are words, not markup."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_header=any(header))
    for name in header:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def render_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 160) -> str:
    """The same table as plain text."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(make_table(title, header, rows))
    return capture.get()
