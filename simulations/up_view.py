"""What a person sees of a fleet of processes: one line a node, as it changes."""

from typing import Any

from rich.table import Table

from simulations.live_view import LiveView
from simulations.up import Fleet

_ROUND = {
    "open": "round {} is open",
    "closed": "round {} is averaged",
    "failed": "round {} ended with too few updates",
}


class UpView(LiveView):
    """A line for each node on a terminal, and for each thing that the coordinator did."""

    def show(self, fleet: Fleet, overview: dict[str, Any]) -> None:
        """Bring the view up to date."""
        for line in _news(overview):
            self.tell(line, fleet.elapsed_s)
        if self.on_terminal:
            self.draw(_table(fleet))


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
