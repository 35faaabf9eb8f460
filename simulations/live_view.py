"""What a person sees of something that changes."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live


class LiveView:
    """A picture that changes on a terminal, a line for each thing that happens elsewhere; nothing if ``quiet``."""

    def __init__(self, picture: RenderableType = "", *, quiet: bool) -> None:
        self._console = Console(file=sys.stderr, quiet=quiet)  # this one: the exporter runs with another
        self._live = Live(picture, console=self._console, refresh_per_second=8, transient=True)
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        if self.on_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def on_terminal(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._console.is_terminal

    def draw(self, picture: RenderableType) -> None:
        """Show ``picture`` in the place of the one before."""
        self._live.update(picture)

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def tell(self, line: str, at: float) -> None:
        """The same, once, after the seconds at which it came about."""
        if line not in self._told:
            self._told.add(line)
            self.say(f"{at:6.1f} s  {line}")
