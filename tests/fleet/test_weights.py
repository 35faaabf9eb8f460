"""Flat weights and their layout."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.weights import Layout

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), max_size=5)
LAYOUT = Layout(("a", "b"), ((2, 3), (2,)))


@given(shapes)
def test_flattening_undoes_unflattening(shapes: list[tuple[int, ...]]) -> None:
    layout = Layout(tuple(f"p{i}" for i in range(len(shapes))), tuple(shapes))
    flat = np.arange(layout.size, dtype=np.float32)
    np.testing.assert_array_equal(layout.flatten(layout.unflatten(flat)), flat)


@given(shapes)
def test_a_layout_survives_json(shapes: list[tuple[int, ...]]) -> None:
    layout = Layout(tuple(f"p{i}" for i in range(len(shapes))), tuple(shapes))
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_parameters_lie_in_the_order_of_the_layout() -> None:
    parameters = LAYOUT.unflatten(np.arange(8, dtype=np.float32))
    np.testing.assert_array_equal(parameters["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(parameters["b"], [6, 7])


def test_flat_weights_are_float32_whatever_they_were() -> None:
    flat = LAYOUT.flatten({"b": np.ones(2, np.float64), "a": np.zeros((2, 3), np.int64)})
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, [0, 0, 0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize("shape", [(7,), (9,), (8, 1), ()])
def test_weights_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the layout needs \(8,\)"):
        LAYOUT.unflatten(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"a": np.zeros((2, 3))}, id="one is missing"),
        pytest.param({"a": np.zeros((3, 2)), "b": np.zeros(2)}, id="one is turned round"),
        pytest.param({"a": np.zeros((2, 3)), "b": np.zeros(3)}, id="one is longer"),
    ],
)
def test_parameters_that_do_not_fit_the_layout_are_refused(parameters: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="missing or has another shape"):
        LAYOUT.flatten(parameters)
