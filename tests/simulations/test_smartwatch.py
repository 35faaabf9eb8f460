"""The smartwatch task: who is the donor, who is held out, and models that always begin the same."""

from typing import cast

import numpy as np
import pytest
import torch

from fleet.check import check
from fleet.errors import UsageError
from fleet.settings import Settings
from fleet.task import weights_of
from simulations import spar
from simulations.smartwatch import Model, held_out, smartwatch

MODELS: list[Model] = ["features", "cnn"]


@pytest.mark.parametrize("name", MODELS)
def test_the_donor_wears_none_of_the_eighteen_private_devices(name: Model) -> None:
    for fold in range(10):
        task = smartwatch(name, fold)
        people = {seen.person for seen in task.devices().values()}
        assert len(task.devices()) == 18
        assert f"person{fold + 1:02d}" not in people
        assert held_out(fold) in people


def test_the_held_out_person_is_the_one_after_the_donor() -> None:
    assert [held_out(fold) for fold in (0, 8, 9)] == ["person02", "person10", "person01"]


@pytest.mark.parametrize("fold", [-1, 10])
def test_an_unknown_fold_is_refused(fold: int) -> None:
    with pytest.raises(UsageError, match="use 0 to 9"):
        smartwatch("cnn", fold)
    with pytest.raises(UsageError, match="use 0 to 9"):
        held_out(fold)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UsageError, match="use features or cnn"):
        smartwatch(cast(Model, "transformer"), 0)


@pytest.mark.parametrize("name", ["features", "cnn"])
def test_a_built_in_model_is_fit_to_run_and_so_not_checked_each_time(name: Model) -> None:
    found = check(smartwatch(name), Settings(), lambda task, weights: ())
    assert [one for one in found if one.level == "error"] == []


@pytest.mark.parametrize(("name", "size"), [("features", 1036), ("cnn", 935)])
def test_the_first_weights_are_always_the_same_and_cost_no_dice(name: Model, size: int) -> None:
    before = torch.random.get_rng_state()
    first, second = (weights_of(smartwatch(name, 3).model()) for _ in range(2))
    assert first.shape == (size,)
    assert np.array_equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_public_constant_is_near_the_number_of_windows_of_a_device() -> None:
    sizes = [len(seen.train) for seen in spar.recordings().values()]
    assert abs(smartwatch("features", 0).training.examples - np.mean(sizes)) < 5
