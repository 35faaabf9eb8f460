"""What is chosen on donors is chosen on donors."""

import numpy as np

from benchmarks.donor_tuning import FLEET, GROUPS, OfFleet, _wrists
from simulations import spar
from simulations.motion import FEATURES


def test_a_donor_is_asked_about_nobody_else() -> None:
    for fold in (0, 9):
        for wrists in _wrists(fold):
            assert {wrists.first.person, wrists.second.person} == {f"person{fold + 1:02d}"}
            assert wrists.first is not wrists.second
            assert wrists.task.donor is not None
            first = np.concatenate([wrists.first.train.x, wrists.first.live.x])
            assert np.array_equal(wrists.task.donor().x, first), "release 0 knows one wrist only"
    assert len(spar.recordings()) == 20


def test_the_groups_are_all_features_once() -> None:
    columns = [column for group in GROUPS.values() for column in range(FEATURES)[group]]
    assert columns == list(range(FEATURES))


def test_one_device_that_stands_for_a_fleet_has_the_noise_of_a_fleets_mean() -> None:
    drawn = OfFleet().integers(20_000, 4000.0)
    assert abs(drawn.std() / (4000.0 / FLEET**0.5) - 1) < 0.03
