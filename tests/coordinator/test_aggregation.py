"""One mean of admitted updates, which no single node can carry away."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from coordinator.aggregation import Entry, mean, screened_mean, staleness_weight
from coordinator.voices import voices
from fleet.weights import Flat

Rule = Callable[..., Flat]
rules = pytest.mark.parametrize("rule", [mean, screened_mean])


class Cohort:
    """Deltas by name, with the entries that the registry would have of them."""

    def __init__(self, deltas: list[Flat], staleness: list[int] | None = None) -> None:
        self.deltas = {f"{index:02d}": delta for index, delta in enumerate(deltas)}
        ages = staleness or [0] * len(deltas)
        norms = [float(np.linalg.norm(delta.astype(np.float64))) for delta in deltas]
        self.entries = [
            Entry(f"key-{name}", name, norm, age) for name, norm, age in zip(self.deltas, norms, ages, strict=True)
        ]

    @property
    def median(self) -> float:
        return sorted(entry.norm for entry in self.entries)[(len(self.entries) - 1) // 2]

    def read(self, name: str) -> Flat:
        return self.deltas[name]

    def by(self, rule: Rule) -> Flat:
        return rule(self.entries, self.read)


def alike(count: int, size: int = 64) -> list[Flat]:
    """Honest deltas: one direction, each with its own noise, all of norm 1."""
    rng = np.random.default_rng(count)
    deltas = 1 + 0.5 * rng.normal(size=(count, size))
    return [(delta / np.linalg.norm(delta)).astype(np.float32) for delta in deltas]


def private(count: int, size: int, seed: int = 0) -> list[Flat]:
    """Honest deltas of private sessions: a seventh of their length is one direction, the rest is noise of their own."""
    rng = np.random.default_rng(seed)
    common = np.ones(size) / np.sqrt(size) / 7
    return [(common + rng.normal(0, 1 / np.sqrt(size), size)).astype(np.float32) for _ in range(count)]


def heard(deltas: list[Flat]) -> list[float]:
    cohort = Cohort(deltas)
    return voices([entry.payload for entry in cohort.entries], cohort.read).tolist()


def cosine(a: Flat, b: Flat) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@rules
@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_the_mean_of_deltas_of_one_length_is_numpys(rule: Rule, count: int) -> None:
    deltas = alike(count)
    expected = np.mean(np.array(deltas, np.float64), axis=0)
    np.testing.assert_allclose(Cohort(deltas).by(rule), expected, rtol=1e-5, atol=1e-7)


def test_the_plain_mean_weighs_every_node_once_whatever_its_norm() -> None:
    deltas = [np.float32(scale) * delta for scale, delta in zip([1, 100, 0, 7], alike(4), strict=True)]
    np.testing.assert_allclose(Cohort(deltas).by(mean), np.mean(np.array(deltas, np.float64), axis=0), rtol=1e-6)


HOSTILE = {
    "sign flip x10": lambda honest: -10 * honest,
    "huge": lambda honest: np.full_like(honest, 1e30),
    "as long as a float32 is": lambda honest: np.full_like(honest, np.finfo(np.float32).max),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_an_update_over_three_medians_leaves_no_trace(hostile: Callable[[Flat], Flat]) -> None:
    honest = alike(16)
    attacked = [*honest, *(hostile(delta) for delta in honest[:4])]
    np.testing.assert_allclose(Cohort(attacked).by(screened_mean), Cohort(honest).by(screened_mean), rtol=1e-5)


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_in_a_cohort_too_small_to_screen_a_hostile_update_is_clipped(hostile: Callable[[Flat], Flat]) -> None:
    honest = alike(3)
    result = Cohort([*honest, hostile(honest[0])]).by(screened_mean)
    assert np.linalg.norm(result) <= 1.0 + 1e-6
    assert cosine(result, Cohort(honest).by(mean)) > 0.5


@pytest.mark.parametrize(("factor", "kept"), [(2.9, True), (3.1, False)])
def test_the_screen_stands_at_three_medians(factor: float, kept: bool) -> None:
    deltas = [*alike(8), np.float32(factor) * np.eye(64, dtype=np.float32)[0]]
    assert (abs(Cohort(deltas).by(screened_mean)[0] - Cohort(alike(8)).by(screened_mean)[0]) > 0.05) == kept


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0, 0, 0, 0, 0, 0], 0.0, id="all zero"),
        pytest.param([0, 0, 0, 0, 1, 1], 0.0, id="most are zero"),
        pytest.param([0, 0, 0, 1], 0.0, id="most are zero, too few to screen"),
        pytest.param([1, -100], 0.0, id="two, and one is hostile"),
        pytest.param([0.5, 0.5, 2, 2], 0.5, id="of an even number the lower median counts"),
        pytest.param([0, 1, 1, 1, 1, 1], 5 / 6, id="one is zero and counts"),
        pytest.param([1, 1, 1, 1, -100], 1.0, id="five are screened"),
        pytest.param([1, 1, 1, -100], 0.5, id="four are only clipped"),
        pytest.param([1, 1, 1, 1, 2], 1.0, id="below the screen, clipped"),
        pytest.param([0.25, 1, 1, 1, 1], 4.25 / 5, id="short ones are not stretched"),
    ],
)
def test_the_screened_mean_of_deltas_on_one_line(values: list[float], expected: float) -> None:
    deltas = [np.array([value, 0], np.float32) for value in values]
    np.testing.assert_allclose(Cohort(deltas).by(screened_mean), [expected, 0], rtol=1e-6)


GANGS: dict[str, Callable[[Flat, np.random.Generator], Flat]] = {
    "the same": lambda bad, rng: bad,
    "the same, of other lengths": lambda bad, rng: np.float32(rng.uniform(0.5, 2)) * bad,
    "half hidden under noise": lambda bad, rng: (bad + rng.normal(0, bad.size**-0.5, bad.size)).astype(np.float32),
}


@pytest.mark.parametrize("size", [1036, 10_000])
@pytest.mark.parametrize("gang", GANGS.values(), ids=GANGS)
def test_under_noise_a_gang_that_says_the_same_is_heard_once_and_honest_nodes_in_full(
    gang: Callable[[Flat, np.random.Generator], Flat], size: int
) -> None:
    honest, rng = private(12, size), np.random.default_rng(1)
    turned = -4 * np.mean(honest[:4], axis=0)
    assert heard([*honest, *(gang(turned, rng) for _ in range(4))]) == [1.0] * 12 + [0.25] * 4


def test_in_a_large_cohort_too_a_gang_is_heard_about_once() -> None:
    gang = [np.ones(256, np.float32)] * 300
    said = heard([*private(2700, 256), *gang])
    assert said[:2700] == [1.0] * 2700
    assert said[2700:] == pytest.approx([1 / 300] * 300, rel=0.25)


@pytest.mark.parametrize("size", [1036, 10_000])
def test_honest_private_deltas_are_all_heard_in_full(size: int) -> None:
    for seed in range(20):
        assert heard(private(16, size, seed)) == [1.0] * 16


@pytest.mark.parametrize("size", [64, 1036, 4096, 10_000])
def test_nobody_makes_an_honest_node_a_copy_without_its_very_noise(size: int) -> None:
    """The common direction itself is more like every honest delta than these are like one another."""
    for seed in range(10):
        common = np.ones(size, np.float32) / np.float32(np.sqrt(size))
        assert heard([*private(15, size, seed), common]) == [1.0] * 16


def test_where_all_deltas_are_alike_none_is_a_copy() -> None:
    for deltas in (alike(16), [alike(1)[0]] * 16, [np.zeros(64, np.float32)] * 16):
        assert heard(deltas) == [1.0] * 16


def test_a_likeness_that_chance_can_give_is_none_however_unlike_all_others_are() -> None:
    apart = np.eye(64, dtype=np.float32)
    assert heard([*apart[:15], apart[20] + np.float32(0.3) * apart[0]]) == [1.0] * 16


def test_a_gang_with_a_long_turned_mean_does_not_turn_the_screened_mean() -> None:
    honest = private(12, 1036)
    cohort = Cohort([*honest, *([-4 * np.mean(honest[:4], axis=0)] * 4)])
    right_way = np.ones(1036, np.float32)
    assert cosine(cohort.by(mean), right_way) < 0 < 0.2 < cosine(cohort.by(screened_mean), right_way)


def test_which_weights_are_added_up_to_compare_deltas_nobody_knows_who_has_not_all_of_them() -> None:
    """Else a gang could hide what is alike where it cancels, as here by signs of its own choice."""
    size, rng = 8192, np.random.default_rng(1)
    half = rng.normal(size=4096).astype(np.float32)
    for flip in (1, -1):
        same = np.concatenate([half, flip * half])
        gang = [same + rng.normal(0, 0.1, size).astype(np.float32) for _ in range(4)]
        assert heard([*private(12, size), *gang])[12:] == [0.25] * 4


def cancelling() -> Cohort:
    """Four pairs that cancel and one tiny delta: what is left of the sum is its rounding."""
    rng = np.random.default_rng(0)
    halves = [rng.normal(size=32).astype(np.float32) for _ in range(4)]
    tiny = (1e-14 * rng.normal(size=32)).astype(np.float32)
    return Cohort([*(sign * half for half in halves for sign in (1, -1)), tiny], staleness=[0, 0, 1, 1, 2, 2, 3, 3, 0])


@rules
@tried(max_examples=50, deadline=None)
@given(order=st.permutations(range(9)))
def test_the_order_of_arrival_changes_no_bit(rule: Rule, order: list[int]) -> None:
    cohort = cancelling()
    shuffled = rule([cohort.entries[index] for index in order], cohort.read)
    assert shuffled.tobytes() == cohort.by(rule).tobytes()


cohorts = st.lists(
    st.tuples(st.floats(0, 1e6), st.integers(0, 9)),  # a norm, and a direction that others may have too
    min_size=2,
    max_size=12,
)


@tried(max_examples=200, deadline=None)
@given(cohort=cohorts, bad=st.floats(0, 1e30), seed=st.integers(0, 9))
def test_I12_the_share_of_one_node_in_the_mean_is_at_most_the_median_norm_over_the_nodes_kept(
    cohort: list[tuple[float, int]], bad: float, seed: int
) -> None:
    def delta(norm: float, seed: int) -> Flat:
        direction = np.random.default_rng(seed).normal(size=64)
        return (norm * direction / np.linalg.norm(direction)).astype(np.float32)

    everyone = Cohort([*(delta(*drawn) for drawn in cohort), delta(bad, seed)])
    screens = len(everyone.entries) >= 5
    kept = [entry for entry in everyone.entries if entry.norm <= 3 * everyone.median or not screens]
    assert kept
    own = everyone.entries[-1].payload
    read: list[str] = []

    def without_its_own(name: str) -> Flat:
        """Its delta is compared with the others' as it is, and is zero when the mean is made."""
        read.append(name)
        summed = read.count(name) == (2 if screens else 1)
        return np.zeros(64, np.float32) if name == own and summed else everyone.read(name)

    share = everyone.by(screened_mean) - screened_mean(everyone.entries, without_its_own)
    assert np.linalg.norm(share.astype(np.float64)) <= everyone.median / len(kept) * (1 + 1e-4) + 1e-30


@pytest.mark.parametrize(("staleness", "weight"), [(0, 1.0), (1, 2**-0.5), (3, 0.5), (8, 1 / 3)])
def test_a_delta_from_an_older_base_counts_less(staleness: int, weight: float) -> None:
    assert staleness_weight(staleness) == pytest.approx(weight, rel=1e-12)


@rules
def test_a_stale_delta_is_weighted_down_and_still_shares_the_mean(rule: Rule) -> None:
    fresh, stale = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    np.testing.assert_allclose(Cohort([fresh, stale], staleness=[0, 3]).by(rule), [0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize(("rule", "count", "times"), [(mean, 6, 1), (screened_mean, 4, 1), (screened_mean, 6, 2)])
def test_a_mean_reads_one_delta_at_a_time_and_each_once_or_to_compare_it_twice(
    rule: Rule, count: int, times: int
) -> None:
    cohort = Cohort(alike(count))
    read: list[str] = []
    rule(cohort.entries, lambda name: (read.append(name), cohort.read(name))[1])
    assert sorted(read) == sorted([*cohort.deltas] * times)


def test_a_mean_of_no_updates_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no updates"):
        mean([], dict[str, Flat]().__getitem__)
