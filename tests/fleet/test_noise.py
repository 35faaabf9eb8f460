"""The noise is Gaussian, rounded, and known to nobody."""

import os

import numpy as np
import pytest
import torch
from scipy import stats

from fleet.privacy.noise import LatticeGaussian

DRAWS = 1_000_000


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    """Draws at a standard deviation so large that rounding does not show, in units of it."""
    return LatticeGaussian().integers(DRAWS, 2.0**30) / 2.0**30


def test_noise_has_the_distribution_of_a_gaussian(normal: np.ndarray) -> None:
    assert stats.kstest(normal, "norm").pvalue > 1e-6


def test_noise_has_the_mean_and_the_standard_deviation_asked_for(normal: np.ndarray) -> None:
    assert abs(normal.mean()) < 5 / np.sqrt(DRAWS)
    assert normal.std() == pytest.approx(1, abs=5 / np.sqrt(2 * DRAWS))


@pytest.mark.parametrize("lag", [1, 2, DRAWS // 4, DRAWS // 2])
def test_draws_do_not_tell_of_one_another(normal: np.ndarray, lag: int) -> None:
    near, far = normal[:-lag], normal[lag:]
    bound = 5 / np.sqrt(len(near))
    assert abs(np.corrcoef(near, far)[0, 1]) < bound
    assert abs(np.corrcoef(near**2, far**2)[0, 1]) < bound


@pytest.mark.parametrize("std", [0.5, 3.0])
def test_noise_on_a_coarse_lattice_is_the_rounded_gaussian(std: float) -> None:
    draws = LatticeGaussian().integers(DRAWS, std)
    values = np.arange(-3 * int(np.ceil(std)), 3 * int(np.ceil(std)) + 1)
    expected = DRAWS * (stats.norm.cdf((values + 0.5) / std) - stats.norm.cdf((values - 0.5) / std))
    seen = np.array([(draws == value).sum() for value in values])
    assert draws.dtype == np.int64
    assert np.all(np.abs(seen - expected) < 6 * np.sqrt(expected) + 6)


@pytest.mark.parametrize("pair", range(16))
def test_no_draw_is_made_of_both_halves_of_a_pair(monkeypatch: pytest.MonkeyPatch, pair: int) -> None:
    """Of Box and Muller's pairs only one has a length, and its halves are alike: they are in two draws of the eight."""
    radius, angle = np.ones(16), np.full(16, 1 / 8)
    radius[pair] = np.exp(-1)
    uniform = iter([radius, angle])
    source = LatticeGaussian()
    monkeypatch.setattr(source, "_uniform", lambda size: next(uniform))
    draws = source._normal(8)
    assert sorted(draws)[:6] == [0] * 6
    np.testing.assert_allclose(sorted(draws)[6:], 0.5, rtol=1e-12)


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_as_many_draws_as_asked_for(size: int) -> None:
    assert LatticeGaussian().integers(size, 1.0).shape == (size,)


def test_no_seed_can_make_noise_come_again() -> None:
    def seeded() -> np.ndarray:
        np.random.seed(0)
        torch.manual_seed(0)
        return LatticeGaussian().integers(16, 1e6)

    assert not np.isin(seeded(), seeded()).any()


def test_two_sources_differ_and_one_source_never_repeats() -> None:
    one, other = LatticeGaussian(), LatticeGaussian()
    draws = [one.integers(16, 1e12), one.integers(16, 1e12), other.integers(16, 1e12)]
    assert len(np.unique(np.concatenate(draws))) == 48


def test_noise_follows_from_a_key_of_256_bits_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    monkeypatch.setattr(os, "urandom", urandom)
    np.testing.assert_array_equal(LatticeGaussian().integers(8, 1e6), LatticeGaussian().integers(8, 1e6))
    assert asked == [32, 32]
