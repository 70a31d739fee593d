"""Three texts that grow at once: redrawn in place on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text


class LiveTexts:
    """Within the block, `show` draws the texts by capability; none clears the place. quiet: draw nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console()
        wanted = console.is_terminal and not quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if wanted else None

    def __enter__(self) -> LiveTexts:
        if self._live is not None:
            self._live.start()
        return self

    def show(self, texts: Mapping[str, str]) -> None:
        """Draw these in place of the last ones; on no terminal, nothing."""
        if self._live is not None:
            self._live.update(Text("\n".join(f"{name}: {text}" for name, text in texts.items())), refresh=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
