"""Three texts that grow at once: redrawn in place on a terminal, printed once at the end elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text


class LiveTexts:
    """Within the block, `show` draws the texts by capability."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None

    def __enter__(self) -> LiveTexts:
        if self._live is not None:
            self._live.start()
        return self

    def show(self, texts: Mapping[str, str]) -> None:
        if self._live is not None:
            self._live.update(Text("\n".join(f"{name}: {text}" for name, text in texts.items())), refresh=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
