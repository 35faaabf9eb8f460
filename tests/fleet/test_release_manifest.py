"""Manifests that are read back strictly, and waves that are exact."""

import json
import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.errors import SignatureError
from fleet.release import Base, Release, Rollout, base_path, release_path, template_path, wave_hash, wave_threshold

BASE = Base("toy", 3, 2, "a" * 64, "b" * 64)
RELEASE = Release("toy", 2, 3, "a" * 64, "b" * 64, "c" * 64, "d" * 64, "onnxruntime 1.31", 10, 2)
ROLLOUT = Rollout(2, "salt", "8" * 64)
EVERYBODY = "f" * 64


def fleet(size: int) -> list[str]:
    return [f"node{i}" for i in range(size)]


def wave(salt: str, nodes: list[str], fraction: float) -> set[str]:
    rollout = Rollout(1, salt, wave_threshold(salt, nodes, fraction))
    return {node for node in nodes if rollout.includes(node)}


@pytest.mark.parametrize("manifest", [BASE, RELEASE, ROLLOUT], ids=lambda m: type(m).__name__)
def test_a_manifest_is_read_as_it_was_written(manifest: Base | Release | Rollout) -> None:
    assert type(manifest).from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[" * 100_000, id="deep nesting"),
        pytest.param(b'{"release": 2}', id="a field is missing"),
        pytest.param(json.dumps({"release": 2, "salt": "s", "threshold": "", "x": 1}).encode(), id="an unknown field"),
        pytest.param(json.dumps({"release": "2", "salt": "s", "threshold": ""}).encode(), id="text for a number"),
        pytest.param(json.dumps({"release": True, "salt": "s", "threshold": ""}).encode(), id="a bool for a number"),
        pytest.param(json.dumps({"release": 2.0, "salt": "s", "threshold": ""}).encode(), id="a fraction"),
        pytest.param(json.dumps({"release": 2**63, "salt": "s", "threshold": ""}).encode(), id="over 63 bits"),
        pytest.param(b'{"release": NaN, "salt": "s", "threshold": ""}', id="NaN"),
        pytest.param(json.dumps({"release": 2, "salt": "s", "threshold": None}).encode(), id="null for a text"),
        pytest.param(
            json.dumps({"release": 2, "salt": "s", "threshold": "", "halted": "no"}).encode(), id="text for a bool"
        ),
    ],
)
def test_a_manifest_that_this_version_cannot_read_is_not_trusted(data: bytes) -> None:
    with pytest.raises(SignatureError, match="rollout manifest cannot be read"):
        Rollout.from_bytes(data)


def test_a_wave_of_five_percent_of_20_nodes_is_exactly_one_node() -> None:
    for salt in map(str, range(50)):
        assert len(wave(salt, fleet(20), 0.05)) == 1


@given(st.integers(1, 200), st.integers(1, 100))
@example(25, 28)
@example(100, 7)
def test_a_wave_is_its_share_of_the_roster_rounded_up(size: int, percent: int) -> None:
    assert len(wave("salt", fleet(size), percent / 100)) == math.ceil(Fraction(percent * size, 100))


@pytest.mark.parametrize("fraction", [0.0, -0.1])
def test_a_wave_of_nothing_is_nobody(fraction: float) -> None:
    assert wave("salt", fleet(20), fraction) == set()


def test_the_smallest_wave_is_one_node() -> None:
    assert len(wave("salt", fleet(20), 1e-6)) == 1


def test_waves_nest() -> None:
    shares = [wave("salt", fleet(40), fraction) for fraction in (0.05, 0.25, 0.5, 1.0)]
    assert all(small < large for small, large in pairwise(shares))
    assert shares[-1] == set(fleet(40))


def test_each_release_has_canaries_of_its_own() -> None:
    assert len({node for salt in map(str, range(50)) for node in wave(salt, fleet(20), 0.05)}) > 10


def test_an_empty_fleet_has_an_empty_wave() -> None:
    assert wave_threshold("salt", [], 0.5) == ""


@pytest.mark.parametrize(
    ("rollout", "included"),
    [
        pytest.param(Rollout(1, "s", ""), False, id="shadow"),
        pytest.param(Rollout(1, "s", EVERYBODY), True, id="everybody"),
        pytest.param(Rollout(1, "s", EVERYBODY, halted=True), False, id="halted"),
        pytest.param(Rollout(1, "s", wave_hash("s", "node1")), True, id="just in"),
        pytest.param(Rollout(1, "s", f"{int(wave_hash('s', 'node1'), 16) - 1:064x}"), False, id="just out"),
    ],
)
def test_a_rollout_names_who_may_serve(rollout: Rollout, included: bool) -> None:
    assert rollout.includes("node1") == included


def test_published_names_sort_by_number() -> None:
    assert base_path(9, "weights.bin") < base_path(10, "weights.bin")
    assert release_path(9, "manifest.json") == "releases/00000009/manifest.json"
    assert template_path("abc") == "templates/abc.bin"
