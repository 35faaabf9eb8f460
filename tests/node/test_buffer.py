"""The buffer: every example once, in exactly one partition, for ever."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import InputError
from fleet.task import Signature, Windows
from node.buffer import Buffer
from node.store import open_store

SIGNATURE = Signature("x", (2,), -1.0, 1.0, ("left", "right"))


def windows(count: int, start: int = 0) -> Windows:
    x = np.arange(2 * start, 2 * (start + count), dtype=np.float32).reshape(count, 2)
    return Windows(x, np.arange(start, start + count, dtype=np.int64) % 2)


@given(st.lists(st.integers(0, 7), max_size=5), st.integers(1, 5))
@settings(max_examples=30)
def test_an_example_is_in_exactly_one_partition_in_order_of_arrival(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], size: int
) -> None:
    store = open_store(tmp_path_factory.mktemp("buffer") / "node.db")
    try:
        buffer = Buffer(store, SIGNATURE, partition_size=size)
        for i, count in enumerate(batches):
            buffer.keep(windows(count, start=sum(batches[:i])))
        total = sum(batches)
        parts = [buffer.examples(partition) for partition in buffer.partitions()]
        assert len(buffer) == total
        assert [len(part) for part in parts] == [min(size, total - start) for start in range(0, total, size)]
        if parts:
            np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), windows(total).x)
            np.testing.assert_array_equal(np.concatenate([part.y for part in parts]), windows(total).y)
    finally:
        store.close()


def test_examples_survive_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "node.db")
    Buffer(store, SIGNATURE, partition_size=3).keep(windows(4))
    store.close()
    store = open_store(tmp_path / "node.db")
    again = Buffer(store, SIGNATURE, partition_size=3)
    again.keep(windows(2, start=4))
    assert [len(again.examples(partition)) for partition in again.partitions()] == [3, 3]
    store.close()


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param({"x": np.full((1, 2), np.nan, np.float32)}, id="NaN"),
        pytest.param({"x": np.full((1, 2), np.inf, np.float32)}, id="infinite"),
        pytest.param({"x": np.zeros((1, 3), np.float32)}, id="another shape"),
        pytest.param({"x": np.zeros((1, 2), np.float64)}, id="another dtype"),
        pytest.param({"x": np.zeros((1, 2), ">f4")}, id="another byte order"),
        pytest.param({"y": np.array([2])}, id="no such class"),
        pytest.param({"y": np.array([-1])}, id="a negative class"),
    ],
)
def test_one_window_that_is_not_what_was_declared_and_nothing_is_kept(
    store: sqlite3.Connection, refused: dict[str, Any]
) -> None:
    buffer = Buffer(store, SIGNATURE, partition_size=3)
    bad = {"x": np.zeros((1, 2), np.float32), "y": np.array([0])} | refused
    good = windows(2)
    x = [*good.x, *bad["x"]]
    with pytest.raises(InputError):
        buffer.keep(Windows(x, np.concatenate([good.y, bad["y"]])))  # type: ignore[arg-type]
    assert len(buffer) == 0


def test_a_partition_nobody_filled_is_empty(store: sqlite3.Connection) -> None:
    empty = Buffer(store, SIGNATURE, partition_size=3).examples(0)
    assert (empty.x.shape, empty.x.dtype, len(empty)) == ((0, 2), np.float32, 0)
