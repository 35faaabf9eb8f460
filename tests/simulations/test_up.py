"""What ``edgefleet up`` counts and says; the fleet itself runs in ``tests/programs``."""

from typing import Any

import pytest

from simulations.up import committed

RELEASES: list[dict[str, Any]] = [
    {"number": 0, "base": 0, "withdraws": None},
    {"number": 1, "base": 1, "withdraws": None},
    {"number": 2, "base": 0, "withdraws": 1},
    {"number": 3, "base": 2, "withdraws": None},
    {"number": 4, "base": 1, "withdraws": 3},
]


@pytest.mark.parametrize(
    ("release", "candidate", "counts"),
    [
        pytest.param(3, None, True, id="trained"),
        pytest.param(1, None, True, id="trained, and not the newest"),
        pytest.param(3, 3, False, id="still on probation"),
        pytest.param(0, None, False, id="release 0"),
        pytest.param(2, None, False, id="a withdrawal back to release 0"),
        pytest.param(4, None, False, id="a withdrawal"),
    ],
)
def test_a_node_has_committed_what_was_trained_and_no_withdrawal(
    release: int, candidate: int | None, counts: bool
) -> None:
    standing = [{"release": release, "candidate": candidate}, {"release": 1, "candidate": None}]
    assert committed(standing, RELEASES) == 1 + counts
