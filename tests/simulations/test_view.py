"""What a person sees of a run."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.rollout import Phase, RolloutState
from coordinator.round import RoundState
from fleet.evidence import Pooled
from fleet.release import Release
from fleet.settings import Settings
from simulations.clock import START
from simulations.result import Result
from simulations.view import View, print_result, standing

RESULT = Result(
    task="task", seed=1, new_device_accuracy=0.8, same_device_accuracy=0.79, float_agreement=0.99, donor_accuracy=0.7,
    epsilon_max=8.0, delta=1e-5, unit="window", rounds=4, updates=64, refused=1, releases=2, nodes=16,
    nodes_promoted=15, nodes_exposed=0, nodes_unsigned=0, answers=300, bytes_up_per_update=4000.0,
    bytes_down_per_base=7000.0, first_promotion_s=1.0, wall_s=2.0,
)  # fmt: skip


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


@pytest.mark.parametrize(("rounds", "said"), [(1, "16 devices, 1 round\n"), (12, "16 devices, 12 rounds\n")])
def test_the_table_at_the_end_counts_rounds_as_people_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rounds: int, said: str
) -> None:
    print_result(replace(RESULT, rounds=rounds), tmp_path, None)
    assert said in re.sub(" +\n", "\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("phase", "withdraws", "counts", "said"),
    [
        pytest.param(Phase.SHADOW, 0, [], "in shadow", id="in shadow"),
        pytest.param(Phase.WAVE, 0, [(2, 0)], "rolling out, wave 1", id="in a wave"),
        pytest.param(Phase.DONE, 0, [(2, 0)], "served by all", id="done"),
        pytest.param(Phase.DONE, 1, [], "takes back release 1, served by all", id="a withdrawal"),
        pytest.param(Phase.KEPT_OLD, 0, [], "kept back, no report in shadow", id="nobody reported"),
        pytest.param(
            Phase.KEPT_OLD,
            0,
            [(3, 1), (1, 2)],
            "kept back, +12.5 points in shadow, standard error 99.6",
            id="as much noise as there is",
        ),
    ],
)
def test_where_a_release_stands_is_told_with_the_noise_in_it(
    phase: Phase, withdraws: int, counts: list[tuple[int, int]], said: str
) -> None:
    release = Release("t", 2, 1, "", "", "", "", "", shadow_windows=4, probation_windows=2, withdraws=withdraws)
    shadow = Pooled.of(counts, quota=4, noise_std=3.75)
    assert standing(release, RolloutState(2, "", phase, 1, START), shadow) == said
