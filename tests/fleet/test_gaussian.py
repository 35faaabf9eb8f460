"""The accounting agrees with an independent exact one, and every rounding errs on the side of privacy."""

import math
from fractions import Fraction

import pytest
from dp_accounting import get_epsilon_gaussian, get_sigma_gaussian
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.errors import BudgetError
from fleet.privacy.gaussian import MU2_UNIT, Budget, _log_tail, charge_of, delta_of, epsilon_of, mu_of

grid = [
    pytest.param(epsilon, delta, id=f"{epsilon:g}-{delta:g}")
    for epsilon in (0.1, 0.5, 1, 3, 8, 20, 50)
    for delta in (1e-3, 1e-5, 1e-7, 1e-10)
]
epsilons = st.floats(0.05, 50)
deltas = st.floats(1e-10, 1e-3)


@pytest.mark.parametrize(("epsilon", "delta"), grid)
def test_mu_is_that_of_the_exact_gaussian_mechanism(epsilon: float, delta: float) -> None:
    assert mu_of(epsilon, delta) == pytest.approx(1 / get_sigma_gaussian(epsilon, delta), rel=1e-6)


@pytest.mark.parametrize(("epsilon", "delta"), grid)
def test_epsilon_is_that_of_the_exact_gaussian_mechanism(epsilon: float, delta: float) -> None:
    sigma = get_sigma_gaussian(epsilon, delta)
    assert epsilon_of(1 / sigma, delta) == pytest.approx(get_epsilon_gaussian(sigma, delta), rel=1e-6)


@pytest.mark.parametrize(("epsilon", "delta"), grid)
def test_delta_is_that_of_the_exact_gaussian_mechanism(epsilon: float, delta: float) -> None:
    assert delta_of(epsilon, 1 / get_sigma_gaussian(epsilon, delta)) == pytest.approx(delta, rel=1e-6)


def test_what_was_never_released_costs_nothing() -> None:
    assert delta_of(1.0, 0.0) == 0.0
    assert epsilon_of(0.0, 1e-5) == 0.0


@given(epsilons, deltas)
def test_mu_is_rounded_down_and_epsilon_up(epsilon: float, delta: float) -> None:
    assert delta_of(epsilon, mu_of(epsilon, delta)) <= delta
    mu = mu_of(epsilon, delta)
    assert delta_of(epsilon_of(mu, delta), mu) <= delta


@given(st.floats(1e-3, 1e5))
@example(3.7)
def test_a_charge_is_never_below_what_the_release_costs(noise_multiplier: float) -> None:
    exact = Fraction(MU2_UNIT) / Fraction(noise_multiplier) ** 2
    assert exact <= charge_of(noise_multiplier) < exact + 1


@given(epsilons, deltas)
def test_a_budget_is_never_above_what_was_promised(epsilon: float, delta: float) -> None:
    assert Fraction(Budget(epsilon, delta).cap_mu2, MU2_UNIT) <= Fraction(mu_of(epsilon, delta)) ** 2


@given(epsilons, deltas, st.integers(1, 10_000))
def test_planned_releases_fit_the_budget_and_waste_none_of_it(epsilon: float, delta: float, releases: int) -> None:
    budget = Budget(epsilon, delta)
    spent = releases * charge_of(budget.noise_multiplier(releases))
    assert budget.cap_mu2 - 3 * releases < spent <= budget.cap_mu2
    assert budget.spent_epsilon(spent) <= epsilon * (1 + 1e-9)


@given(epsilons, st.integers(1, 10_000))
def test_one_release_more_than_planned_does_not_fit(epsilon: float, releases: int) -> None:
    budget = Budget(epsilon, 1e-5)
    assert (releases + 1) * charge_of(budget.noise_multiplier(releases)) > budget.cap_mu2


def test_a_budget_that_is_cut_too_fine_is_refused() -> None:
    with pytest.raises(BudgetError, match="cannot be cut into 1000000000000 releases"):
        Budget(0.1, 1e-5).noise_multiplier(10**12)


@pytest.mark.parametrize("epsilon", [1e3, 1e7, 1e12, 1e16, 1e300, 1.7e308])
def test_any_finite_budget_can_be_kept_in_64_bits(epsilon: float) -> None:
    budget = Budget(epsilon, 1e-5)
    assert 200 * charge_of(budget.noise_multiplier(200)) <= budget.cap_mu2 < 2**63


def test_an_infinite_epsilon_adds_no_noise_and_keeps_no_promise() -> None:
    budget = Budget(math.inf, 1e-5)
    assert not budget.private
    assert budget.noise_multiplier(200) == 0.0
    assert budget.spent_epsilon(0) == 0.0
    assert budget.spent_epsilon(charge_of(0.0)) == math.inf
    assert 10**9 * charge_of(0.0) < budget.cap_mu2


@given(epsilons, st.integers(2, 10))
def test_a_unit_that_lies_in_several_examples_costs_as_much_more(epsilon: float, group: int) -> None:
    alone, several = Budget(epsilon, 1e-5), Budget(epsilon, 1e-5, group)
    assert several.noise_multiplier(20) == pytest.approx(group * alone.noise_multiplier(20), rel=1e-4)
    spent = 20 * charge_of(several.noise_multiplier(20))
    assert several.spent_epsilon(spent) == pytest.approx(epsilon, rel=1e-3)
    assert several.spent_epsilon(spent) <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("x", [30.0, 31.5, 45.0, 80.0])
def test_the_tail_of_a_large_budget_is_never_taken_for_more_than_it_is(x: float) -> None:
    """Laplace's continued fraction, broken off after its fourth part, is below the true tail: DLMF 7.9."""
    shrunk = math.log1p(-(x * x + 3) / (x**4 + 6 * x * x + 3))
    below = -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + shrunk
    assert _log_tail(x) <= below
    assert _log_tail(x) == pytest.approx(below, abs=1e-7)
