"""Clip, sum, noise: what the release path promises about one example."""

import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fleet.privacy.release import PITCH, clip, private_sum

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Opacus warns about its own optional parts on import
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

Gradients = npt.NDArray[np.float64]

shapes = st.tuples(st.integers(1, 8), st.integers(1, 6))
anything = arrays.arrays(np.float64, shapes, elements=st.floats(width=64))
finite = arrays.arrays(np.float64, shapes, elements=st.floats(-1e3, 1e3))
norms = st.floats(1e-6, 1e3)


class Recorder:
    """A noise source that adds nothing and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
        self.asked.append((size, std))
        return np.zeros(size, np.int64)


def noiseless(gradients: Gradients, clipping_norm: float) -> Gradients:
    return private_sum(gradients, clipping_norm=clipping_norm, noise_multiplier=0.0, noise=Recorder())


def stated_sensitivity(gradients: Gradients, clipping_norm: float) -> float:
    """What the noise was scaled to, had it been drawn at a multiplier of 1."""
    recorder = Recorder()
    private_sum(gradients, clipping_norm=clipping_norm, noise_multiplier=1.0, noise=recorder)
    return recorder.asked[0][1] * clipping_norm * PITCH


@given(anything, norms)
def test_no_example_contributes_more_than_the_clipping_norm(gradients: Gradients, clipping_norm: float) -> None:
    clipped = clip(gradients, clipping_norm)
    assert np.isfinite(clipped).all()
    assert np.linalg.norm(clipped, axis=1).max() <= clipping_norm * (1 + 1e-12)


@given(arrays.arrays(np.float64, shapes, elements=st.floats(-1, 1)))
def test_a_short_example_is_left_as_it_is(gradients: Gradients) -> None:
    np.testing.assert_array_equal(clip(gradients, 10.0), gradients)


@given(anything, norms)
def test_adding_an_example_moves_the_sum_by_at_most_the_sensitivity(gradients: Gradients, clipping_norm: float) -> None:
    """Adding or removing one example moves the sum, before noise, by at most the sensitivity that the noise is
    scaled to."""
    whole = noiseless(gradients, clipping_norm)
    moves = [
        np.linalg.norm(whole - noiseless(np.delete(gradients, i, 0), clipping_norm)) for i in range(len(gradients))
    ]
    assert max(moves) <= stated_sensitivity(gradients, clipping_norm) * (1 + 1e-12)


def test_the_sensitivity_is_not_stated_larger_than_it_need_be() -> None:
    example = np.full((1, 10_000), 1.0)
    move = np.linalg.norm(noiseless(example, 1.0))
    assert move <= stated_sensitivity(example, 1.0) < 1.0001 * move


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_a_non_finite_example_counts_as_zero(value: float) -> None:
    """A non-finite example counts as zero."""
    gradients = np.random.default_rng(0).normal(size=(5, 7))
    spoiled = np.insert(gradients, 2, 1.0, axis=0)
    spoiled[2, 3] = value
    np.testing.assert_array_equal(noiseless(spoiled, 0.5), noiseless(gradients, 0.5))


@given(finite, st.integers(0, 20), norms, st.floats(0.1, 100))
def test_the_noise_does_not_depend_on_how_many_examples_there_are(
    gradients: Gradients, copies: int, clipping_norm: float, noise_multiplier: float
) -> None:
    """The noise does not depend on how many examples there are."""
    recorder = Recorder()
    for batch in (gradients, np.repeat(gradients, copies, axis=0)):
        private_sum(batch, clipping_norm=clipping_norm, noise_multiplier=noise_multiplier, noise=recorder)
    assert recorder.asked[0] == recorder.asked[1]


def test_noise_is_added_to_every_coordinate_once_and_on_the_lattice() -> None:
    class Ones(Recorder):
        def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
            return np.ones(size, np.int64)

    gradients = np.random.default_rng(0).normal(size=(5, 7))
    noisy = private_sum(gradients, clipping_norm=0.5, noise_multiplier=1.0, noise=Ones())
    np.testing.assert_array_equal((noisy - noiseless(gradients, 0.5)) / (0.5 * PITCH), 1.0)


def test_nobody_s_examples_give_only_noise() -> None:
    np.testing.assert_array_equal(noiseless(np.zeros((0, 3)), 1.0), 0.0)


def test_without_noise_the_sum_is_that_of_stock_opacus() -> None:
    torch.manual_seed(0)
    model = GradSampleModule(torch.nn.Linear(6, 4).double(), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=5.0,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    # Long gradients, for Opacus divides by the norm plus 1e-6, and much alike, for the lattice is half as coarse.
    x, y = 50 + 20 * torch.randn(32, 6, dtype=torch.float64), torch.arange(32) // 30
    x[0] = 1e-4  # and one so short that it is not clipped
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
    rows = [p.grad_sample.reshape(32, -1).numpy().copy() for p in model.parameters()]
    optimizer.pre_step()
    theirs = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
    ours = noiseless(np.concatenate(rows, axis=1), 5.0)
    assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
