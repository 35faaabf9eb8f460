"""Exact Gaussian differential privacy: (ε, δ) and μ, and the noise of a plan.

Releases of sensitivity C with noise σC compose exactly to one μ-GDP mechanism with μ² = Σ 1/σ² (Dong, Roth and
Su, "Gaussian Differential Privacy", 2019, Corollary 3.3), also when each σ is chosen after seeing earlier releases
(Smith and Thakurta 2022). Its δ(ε) is closed: Balle and Wang 2018, Theorem 8. μ² is kept as an integer, in units
of 1e-12, a charge rounded up and the budget rounded down, so that the recorded ε is never below the true one.
"""

import math
from dataclasses import dataclass

from fleet.errors import BudgetError

MU2_UNIT = 10**12
_HIGHEST_MU2 = 2**62  # a database holds 63 bits


def delta_of(epsilon: float, mu: float) -> float:
    """The δ of a μ-GDP mechanism at ε (Balle and Wang 2018, Theorem 8)."""
    if mu == 0:
        return 0.0
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    return max(0.0, _tail(a) - math.exp(min(epsilon + _log_tail(b), 0.0)))


def epsilon_of(mu: float, delta: float) -> float:
    """The least ε ≥ 0 that a μ-GDP mechanism keeps at δ, to 1e-12 relative, rounded up."""
    if delta_of(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high, mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, mu) > delta else (low, middle)
    return high


def mu_of(epsilon: float, delta: float) -> float:
    """The largest μ whose mechanism keeps (ε, δ), to 1e-12 relative, rounded down."""
    low, high = 0.0, 1.0
    while delta_of(epsilon, high) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(epsilon, middle) <= delta else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class Budget:
    """What one partition of a node's data may cost, in integer μ² units.

    Where one unit lies in up to ``group`` examples, a mechanism that is μ-GDP for an example is ``group``·μ-GDP for
    the unit (Dong, Roth and Su 2019, Theorem 2.14): ε is always that of the unit.
    """

    epsilon: float
    delta: float
    group: int = 1

    @property
    def private(self) -> bool:
        """Whether there is any promise: an infinite ε makes none."""
        return math.isfinite(self.epsilon)

    @property
    def cap_mu2(self) -> int:
        """The μ² that may be spent, rounded down; of ε infinite, so much that nothing reaches it."""
        if not self.private:
            return _HIGHEST_MU2
        from fractions import Fraction

        mu = Fraction(mu_of(self.epsilon, self.delta)) / self.group
        return min(math.floor(MU2_UNIT * mu**2), _HIGHEST_MU2)

    @property
    def report_noise(self) -> float:
        """Noise standard deviation on each count of a report: one report spends the whole budget of its windows."""
        return self.noise_multiplier(1)

    def noise_multiplier(self, releases: int) -> float:
        """σ such that ``releases`` charges fit under the cap, as tightly as integers allow; 0 without privacy.

        Raises:
            BudgetError: The budget cannot be cut into so many releases.
        """
        if not self.private:
            return 0.0
        share = self.cap_mu2 // releases
        if share < 1:
            raise BudgetError(f"epsilon {self.epsilon:g} cannot be cut into {releases} releases; plan fewer")
        multiplier = math.sqrt(MU2_UNIT / share)
        while charge_of(multiplier) > share:  # a float or two further, so that rounding the charge up stays inside
            multiplier = math.nextafter(multiplier, math.inf)
        return multiplier

    def spent_epsilon(self, mu2: int) -> float:
        """The ε of ``mu2`` units spent; infinite if nothing was promised and something was released."""
        if not self.private:
            return math.inf if mu2 else 0.0
        return epsilon_of(self.group * math.sqrt(mu2 / MU2_UNIT), self.delta)


def charge_of(noise_multiplier: float) -> int:
    """The μ² units of one release, rounded up; one unit where nothing is promised, so that it is on record."""
    if noise_multiplier == 0:
        return 1
    from fractions import Fraction

    return math.ceil(MU2_UNIT / Fraction(noise_multiplier) ** 2)  # exact: a quotient of floats may round down


def _tail(x: float) -> float:
    """P(N(0,1) > x)."""
    return math.erfc(x / math.sqrt(2)) / 2


def _log_tail(x: float) -> float:
    """log P(N(0,1) > x), beyond where the tail itself underflows by the asymptotic series.

    The series alternates, and is cut after a negative term: it errs towards a smaller tail, so a larger ε.
    """
    if x < 30:
        return math.log(_tail(x))
    if x > 1e8:
        return -math.inf  # beyond the precision of x²; as a δ is what it is taken from, this errs on the safe side
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2 + 3 / x**4 - 15 / x**6)
