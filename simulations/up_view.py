"""What a person sees of a fleet of processes: one line a node, as it changes."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from simulations.up import Fleet

_ROUND = {
    "open": "round {} is open",
    "closed": "round {} is averaged",
    "failed": "round {} ended with too few updates",
}


class UpView:
    """A live table on a terminal, a line for each thing that happens elsewhere; nothing if ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def show(self, fleet: Fleet, overview: dict[str, Any]) -> None:
        """Bring the view up to date."""
        at = f"{fleet.elapsed_s:5.1f} s"
        for line in _news(overview):
            if line not in self._told:
                self._told.add(line)
                self.say(f"{at}  {line}")
        if self._console.is_terminal:
            self._live.update(_table(fleet))


def _news(overview: dict[str, Any]) -> list[str]:
    rounds, rollout = overview["rounds"], overview["rollout"]
    lines = [_ROUND[rounds["last"]["state"]].format(rounds["last"]["number"])] if rounds["last"] else []
    if rollout:
        wave = f", wave {rollout['wave'] + 1}" if rollout["phase"] == "wave" else ""
        lines.append(f"release {rollout['number']}: {rollout['phase']}{wave}")
    if overview["serving"]:
        lines.append(f"release {overview['serving']} is for everybody")
    return lines


def _table(fleet: Fleet) -> Table:
    table = Table("node", "release", "on trial", "answers", "failed", "examples", "updates", "epsilon")
    for wearer in fleet.wearers:
        one = wearer.status()
        trial = f"{one['candidate']} {one['stage']}" if one["candidate"] else "-"
        cells = (one["release"], trial, wearer.answers, wearer.failed, one["examples"], one["updates_sent"])
        table.add_row(wearer.name, *map(str, cells), f"{one['epsilon_spent']:.2f}")
    return table
