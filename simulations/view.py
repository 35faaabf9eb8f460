"""What a person sees: rounds as they happen, and a table at the end."""

import math
from collections import Counter
from pathlib import Path

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from coordinator.rollout import Phase, RolloutState
from coordinator.round import RoundState
from fleet.evidence import Pooled
from fleet.messages import Watch
from fleet.release import Release
from fleet.settings import Settings
from simulations.clock import START
from simulations.live_view import LiveView
from simulations.result import Result
from simulations.stories.story import Tale, count
from simulations.world import World

ROUNDS_SHOWN = 5

_PHASES = {
    Phase.SHADOW: "in shadow",
    Phase.WAVE: "rolling out, wave",
    Phase.DONE: "served by all",
    Phase.KEPT_OLD: "kept back",
    Phase.HALTED: "halted and withdrawn",
}


class View(LiveView):
    """How far a run has come: its rounds and its fleet on a terminal, elsewhere a line for each that ended."""

    def __init__(self, settings: Settings, *, quiet: bool) -> None:
        self._bar = Progress(
            TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), expand=False
        )
        self._rounds = self._bar.add_task("", total=settings.round.rounds, note="starting: exporting the model")
        super().__init__(self._bar, quiet=quiet)

    def show(self, world: World) -> None:
        """Bring the view up to date."""
        played = world.coordinator.registry.rounds.closed()
        day, hour = divmod(round((world.clock() - START).total_seconds() / 3600), 24)
        self._bar.update(self._rounds, completed=played, note=f"simulated day {day + 1}, {hour:02}:00")
        if self.on_terminal:
            self.draw(Group(self._bar, _fleet(world)))
        else:
            for round_, state, replies in _rounds(world):
                if state != RoundState.OPEN:
                    self.tell(f"{round_} {state}: {replies}", world.wall_s)
        for release, rollout in world.coordinator.registry.releases.all():
            if release.number > 0:
                shadow = world.coordinator.delivery.evidence(release, Watch.SHADOW, world.devices)
                self.tell(f"release {release.number} {standing(release, rollout, shadow)}", world.wall_s)


def standing(release: Release, state: RolloutState, shadow: Pooled) -> str:
    """Where a release stands, in words; one that was kept back with what its shadow reports made of it."""
    taken_back = f"takes back release {release.withdraws}, " if release.withdraws else ""
    if state.phase is Phase.WAVE:
        return f"{taken_back}{_PHASES[state.phase]} {state.wave}"
    if state.phase is Phase.KEPT_OLD:
        reported = f"{100 * shadow.gain:+.1f} points in shadow, standard error {100 * shadow.error:.1f}"
        return f"{taken_back}{_PHASES[state.phase]}, {reported if shadow.reports else 'no report in shadow'}"
    return f"{taken_back}{_PHASES[state.phase]}"


def _rounds(world: World) -> list[tuple[str, str, str]]:
    """Each round: its number, how it stands, and the replies to it."""
    rounds = world.coordinator.registry.rounds
    refused = Counter(refusal.round for refusal in rounds.refusals())
    return [
        (
            f"round {round_.number}",
            round_.state.value,
            f"{count(len(rounds.answered(round_.number)), 'update')}, {refused[round_.number]} refused",
        )
        for round_ in rounds.all()
    ]


def _fleet(world: World) -> Table:
    """The newest rounds, and which release each device answers with."""
    agents = [device.agent for device in world.devices.values()]
    serving = Counter(agent.serving.active.release for agent in agents if agent.serving.active)
    spent = max(agent.ledger.epsilon() for agent in agents)
    answers = sum(agent.shadow.next_seq() for agent in agents)
    table = Table.grid(padding=(0, 3))
    for row in _rounds(world)[-ROUNDS_SHOWN:]:
        table.add_row(*row)
    table.add_row(
        ", ".join(f"{count(on_it, 'node')} on release {number}" for number, on_it in sorted(serving.items())),
        f"epsilon {spent:.2f}" if math.isfinite(spent) else "no privacy",
        f"{answers} windows answered",
    )
    return table


def print_result(result: Result, folder: Path, tale: Tale | None) -> None:
    """The table at the end, after the story if there is one."""
    table = Table(title=f"{result.task}: {result.nodes} devices, {count(result.rounds, 'round')}", title_justify="left")
    table.add_column("what")
    table.add_column("", justify="right")
    for what, value in _rows(result):
        table.add_row(what, value)
    console = Console()
    if tale:
        console.print(_figures(tale))
        console.print(" ".join(tale.told), highlight=False)
    console.print(table)
    console.print(f"The report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"Everything is in {folder}", highlight=False, soft_wrap=True)


def _figures(tale: Tale) -> Table:
    table = Table(title=tale.title, title_justify="left", show_header=False)
    for name, value in tale.figures.items():
        table.add_row(name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
    return table


def _rows(result: Result) -> list[tuple[str, str]]:
    spent = result.epsilon_max
    private = spent is not None and math.isfinite(spent)
    promoted = f"{result.first_promotion_s:.1f} s" if result.first_promotion_s is not None else "never"
    return [
        ("accuracy on people the fleet never saw", f"{result.new_device_accuracy:.1%}"),
        ("  release 0, before any of them learned", f"{result.donor_accuracy:.1%}"),
        ("accuracy on the fleet's own later windows", f"{result.same_device_accuracy:.1%}"),
        ("int8 and float32 name the same class", f"{result.float_agreement:.2%}"),
        (
            f"epsilon spent, a unit being: {result.unit}",
            f"{spent:.3f} at delta {result.delta:g}" if private else "no privacy",
        ),
        ("updates counted / refused", f"{result.updates} / {result.refused}"),
        ("releases after release 0", f"{result.releases}"),
        ("devices that ended with a trained release", f"{result.nodes_promoted} of {result.nodes}"),
        ("devices exposed to a release taken back", f"{result.nodes_exposed}"),
        ("devices that ever served unsigned weights", f"{result.nodes_unsigned}"),
        ("bytes up an update / down a base", f"{result.bytes_up_per_update:,.0f} / {result.bytes_down_per_base:,.0f}"),
        ("first promotion / whole run", f"{promoted} / {result.wall_s:.1f} s"),
    ]
