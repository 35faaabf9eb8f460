"""Release 0."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from coordinator.warm_start import warm_start
from fleet.task import Task, Windows, set_weights, weights_of
from fleet.weights import Flat
from simulations.smartwatch import smartwatch

TASK = smartwatch("features", 0)


def accuracy(task: Task, weights: Flat) -> float:
    model = task.model()
    set_weights(model, weights)
    right = []
    for seen in task.devices().values():
        with torch.no_grad():
            right.append(model(torch.from_numpy(seen.live.x)).argmax(1).numpy() == seen.live.y)
    return float(np.concatenate(right).mean())


def test_release_0_already_reads_other_people() -> None:
    assert accuracy(TASK, warm_start(TASK, seed=0)) > 0.6


def test_equal_seeds_give_equal_weights_and_leave_the_dice_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (warm_start(TASK, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("donor", [True, False], ids=["a donor", "no donor"])
def test_equal_seeds_give_equal_weights_of_a_model_that_draws_its_own(donor: bool) -> None:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(600, 7))

    task = replace(TASK, model=model, donor=TASK.donor if donor else None)
    first = warm_start(task, seed=1)
    torch.rand(1)
    assert np.array_equal(first, warm_start(task, seed=1))
    assert not np.array_equal(first, warm_start(task, seed=2))


def test_labels_of_any_whole_kind_give_the_same_weights() -> None:
    assert TASK.donor
    public = TASK.donor()
    short = replace(TASK, donor=lambda: Windows(public.x, public.y.astype(np.int32)))  # type: ignore[arg-type]
    assert np.array_equal(warm_start(short, seed=1), warm_start(TASK, seed=1))


def test_a_reading_outside_the_range_counts_as_its_nearest_end() -> None:
    assert TASK.donor
    public = TASK.donor()

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(600, 7))

    narrow = replace(TASK, model=model, signature=replace(TASK.signature, low=-0.5, high=0.5))
    clipped = replace(narrow, donor=lambda: Windows(public.x.clip(-0.5, 0.5), public.y))
    assert np.array_equal(warm_start(narrow, seed=1), warm_start(clipped, seed=1))


def test_a_front_that_works_in_place_leaves_the_donors_windows_as_they_are() -> None:
    assert TASK.donor
    public, before = TASK.donor(), TASK.donor().x.copy()

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Hardtanh(-0.1, 0.1, inplace=True), torch.nn.Flatten(), torch.nn.Linear(600, 7)
        )

    warm_start(replace(TASK, model=model, donor=lambda: public), seed=0)
    assert np.array_equal(public.x, before)


def test_without_a_donor_release_0_is_the_model_as_it_was_made() -> None:
    made = weights_of(TASK.model())
    nothing = Windows(np.zeros((0, 6, 100), np.float32), np.zeros(0, np.int64))
    assert np.array_equal(warm_start(replace(TASK, donor=None), seed=0), made)
    assert np.array_equal(warm_start(replace(TASK, donor=lambda: nothing), seed=0), made)
