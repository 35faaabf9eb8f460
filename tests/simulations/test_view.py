"""What a person sees of a rollout: where it stands, and what a release that was kept back had gained."""

from dataclasses import replace

import pytest

from coordinator.rollout import Phase, RolloutState
from fleet.evidence import Pooled
from simulations.clock import START
from simulations.view import phase

STATE = RolloutState(1, "salt", Phase.SHADOW, 0, START)
NOTHING = Pooled.of([], quota=10, noise_std=0.0)
REFUTED = Pooled.of([(1, 8), (0, 9)], quota=10, noise_std=0.0)


@pytest.mark.parametrize(
    ("state", "shadow", "said"),
    [
        (STATE, NOTHING, "in shadow"),
        (replace(STATE, phase=Phase.WAVE, wave=2), REFUTED, "rolling out, wave 2"),
        (replace(STATE, phase=Phase.DONE), REFUTED, "served by all"),
        (replace(STATE, phase=Phase.KEPT_OLD), REFUTED, "kept back, -80.0 points in shadow"),
        (replace(STATE, phase=Phase.KEPT_OLD), NOTHING, "kept back, no report in shadow"),
        (replace(STATE, phase=Phase.HALTED, wave=1), REFUTED, "halted and withdrawn"),
    ],
)
def test_a_rollout_is_told_by_what_became_of_it(state: RolloutState, shadow: Pooled, said: str) -> None:
    assert phase(state, shadow) == said
