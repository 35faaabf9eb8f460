"""How often a release is promoted or vetoed by mistake, and how often rightly, over many simulated fleets."""

import math

import numpy as np
import pytest
from scipy import stats

from fleet.evidence import Pooled, harm_evidence
from fleet.privacy.gaussian import Budget

NODES, QUOTA = 16, 10
ALPHA, MARGIN = 0.05, 0.05
RUNS = 4000
NOISE_STD = Budget(8.0, 1e-5).noise_multiplier(1)
VETO = 1 / ALPHA


def fleets(
    gain: float, churn: float, *, spread: float = 0.0, runs: int = RUNS, nodes: int = NODES, noise: float = NOISE_STD
) -> list[Pooled]:
    """Fleets whose new model is better by ``gain`` and answers otherwise rightly or wrongly on ``churn`` windows.

    ``spread``: half of the nodes gain so much more than that, and half so much less.
    """
    rng = np.random.default_rng(7)
    gains = gain + spread * np.where(np.arange(nodes) % 2, 1, -1)
    chances = np.stack([(churn + gains) / 2, (churn - gains) / 2, np.full(nodes, 1 - churn)], axis=1)
    counts = rng.multinomial(QUOTA, chances, size=(runs, nodes))[..., :2]
    noisy = counts + np.rint(rng.normal(0, noise, counts.shape)).astype(int)
    return [Pooled.of([tuple(pair) for pair in run.tolist()], quota=QUOTA, noise_std=noise) for run in noisy]


def promoted(fleets: list[Pooled]) -> float:
    return float(np.mean([fleet.not_worse(margin=MARGIN, alpha=ALPHA) for fleet in fleets]))


@pytest.mark.parametrize("churn", [0.05, 0.1, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("nodes", [5, 8, 16, 20])
@pytest.mark.parametrize("noise", [0.0, NOISE_STD], ids=["no noise", "noise"])
def test_a_release_that_loses_the_whole_margin_is_promoted_as_seldom_as_stated(
    churn: float, nodes: int, noise: float
) -> None:
    sigma = math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    assert promoted(fleets(-MARGIN, churn, nodes=nodes, noise=noise)) <= ALPHA + 3 * sigma


@pytest.mark.parametrize("churn", [0.06, 0.1, 0.2, 0.8])
@pytest.mark.parametrize("windows", [20, 40, 80, 100])
def test_without_noise_the_stated_error_holds_exactly_down_to_a_few_windows(windows: int, churn: float) -> None:
    """Over every outcome there is: without the half window of correction it would be up to 8.9 % for 20 windows."""
    counts = [(won, lost) for won in range(windows + 1) for lost in range(windows + 1 - won)]
    chances = [(churn - MARGIN) / 2, (churn + MARGIN) / 2, 1 - churn]
    likely = stats.multinomial.pmf([(won, lost, windows - won - lost) for won, lost in counts], windows, chances)
    pooled = [Pooled(windows, won, lost, windows // QUOTA, 0.0) for won, lost in counts]
    assert likely[[each.not_worse(margin=MARGIN, alpha=ALPHA) for each in pooled]].sum() <= ALPHA
    assert likely[[each.worse(margin=MARGIN, alpha=ALPHA) for each in pooled]].sum() <= ALPHA


def test_a_loss_that_lies_on_some_nodes_only_is_promoted_as_seldom() -> None:
    sigma = math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    assert promoted(fleets(-MARGIN, 0.3, spread=0.2)) <= ALPHA + 3 * sigma


def test_an_equal_release_is_promoted_often_enough_and_a_better_one_nearly_always() -> None:
    assert promoted(fleets(0.0, 0.06)) >= 0.4
    assert promoted(fleets(0.13, 0.19)) >= 0.9


def test_a_release_that_is_not_worse_is_called_worse_as_seldom_as_stated() -> None:
    called = np.mean([fleet.worse(margin=MARGIN, alpha=ALPHA) for fleet in fleets(-MARGIN, 0.2)])
    assert called <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    assert np.mean([fleet.worse(margin=MARGIN, alpha=ALPHA) for fleet in fleets(-0.6, 0.7, runs=200)]) == 1.0


def test_no_report_is_no_evidence() -> None:
    nothing = Pooled.of([], quota=QUOTA, noise_std=NOISE_STD)
    assert (nothing.windows, nothing.gain, nothing.error) == (0, 0.0, math.inf)
    assert not nothing.not_worse(margin=0.9, alpha=ALPHA)
    assert not nothing.worse(margin=0.01, alpha=ALPHA)


def test_reports_are_pooled_by_summing_them() -> None:
    pooled = Pooled.of([(3, 1), (-2, 4)], quota=10, noise_std=0.5)
    assert pooled == Pooled(windows=20, won=1, lost=5, reports=2, noise_std=0.5)
    assert pooled.gain == pytest.approx(-0.2)


def test_noise_widens_the_error() -> None:
    errors = [Pooled(160, 8, 8, 16, std).error for std in (0.0, 0.5, 2.0)]
    assert errors == sorted(errors)
    assert errors[0] < errors[1]


def test_counts_that_noise_made_impossible_are_still_judged() -> None:
    for won, lost in [(-9, -9), (900, 900), (-500, 500)]:
        assert 0 < Pooled(160, won, lost, 16, 2.0).error < 1


def outcomes(won: float, lost: float, windows: int, runs: int) -> np.ndarray:
    rng = np.random.default_rng(11)
    return rng.choice([-1, 1, 0], size=(runs, windows), p=[won, lost, 1 - won - lost])


@pytest.mark.parametrize("churn", [0.2, 0.6, 1.0])
def test_a_release_that_is_as_good_is_vetoed_as_seldom_as_stated_however_often_one_looks(churn: float) -> None:
    runs = outcomes(churn / 2, churn / 2, windows=300, runs=1000)
    assert np.mean([harm_evidence(run) >= VETO for run in runs.tolist()]) <= ALPHA


def test_a_broken_release_is_vetoed_within_30_windows() -> None:
    runs = outcomes(0.05, 0.65, windows=30, runs=300)
    assert np.mean([harm_evidence(run) >= VETO for run in runs.tolist()]) >= 0.95


def test_evidence_once_seen_is_not_forgotten() -> None:
    harmed = [1] * 10
    assert harm_evidence(harmed + [-1] * 100) == harm_evidence(harmed) > VETO


@pytest.mark.parametrize("outcome", [0, -1])
def test_no_harm_is_no_evidence(outcome: int) -> None:
    assert harm_evidence([]) == harm_evidence([outcome] * 50) == 1.0


def test_evidence_beyond_measure_is_infinite_and_no_warning() -> None:
    assert harm_evidence([1] * 5000 + [-1] * 5000) == math.inf
