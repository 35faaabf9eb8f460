"""What the central models of the table learn from."""

import numpy as np

from benchmarks.fold import fold_of
from benchmarks.models import _pooled
from simulations.smartwatch import smartwatch


def test_central_models_have_all_that_a_warm_fleet_learned_from_and_nobody_elses_windows() -> None:
    place, donor = fold_of(0), smartwatch("features", 0).donor
    assert donor is not None
    pooled, seen = _pooled(place), [*(each.train for each in place.fleet.values()), donor()]
    assert len(pooled) == sum(len(part) for part in seen)
    np.testing.assert_array_equal(pooled.x[-len(donor()) :], donor().x)
