"""What a person sees of a run."""

from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.round import RoundState
from fleet.settings import Settings
from simulations.clock import START
from simulations.view import View


def world(rounds: int) -> Any:
    """A world in which so many rounds were played, each with four updates and one refusal."""
    played = [SimpleNamespace(number=number, state=RoundState.CLOSED) for number in range(1, rounds + 1)]
    registry = SimpleNamespace(
        rounds=SimpleNamespace(
            all=lambda: played,
            closed=lambda: rounds,
            refusals=lambda: [SimpleNamespace(round=round_.number) for round_ in played],
            answered=lambda number: {"a", "b", "c", "d"},
        ),
        releases=SimpleNamespace(all=list),
    )
    return SimpleNamespace(coordinator=SimpleNamespace(registry=registry), clock=lambda: START, wall_s=1.25 * rounds)


@pytest.mark.parametrize("quiet", [False, True])
def test_where_there_is_no_terminal_each_round_is_a_line_once(capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    with View(Settings(), quiet=quiet) as view:
        for rounds in (0, 1, 1, 2):
            view.show(world(rounds))
    told = ["   1.2 s  round 1 closed: 4 updates, 1 refused", "   2.5 s  round 2 closed: 4 updates, 1 refused"]
    assert capsys.readouterr().err.splitlines() == ([] if quiet else told)
