"""Measuring: the cheap way gives the same answers, and what is written down is read back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.rounds import BaseRow
from fleet.task import Recording, Task, Windows, set_weights, weights_of
from fleet.weights import Flat
from simulations.facts import _events
from simulations.measure import _bench, _by_device, _spread
from simulations.measurement import Judged, Lent, Measurements, Own, Seen, Spent
from simulations.smartwatch import Model, smartwatch

RNG = np.random.default_rng(0)


def windows(count: int) -> Windows:
    x = RNG.normal(size=(count, 6, 100)).astype(np.float32)
    return Windows(x, RNG.integers(0, 7, count))


def answers(task: Task, weights: Flat, seen: Windows) -> list[int]:
    model = task.model().eval()
    set_weights(model, weights)
    with torch.no_grad():
        return [int(label) for label in model(torch.from_numpy(seen.x)).argmax(1)]


@pytest.mark.parametrize(("model", "only_head"), [("features", True), ("cnn", False)])
def test_a_bench_is_right_where_the_whole_model_is(model: Model, only_head: bool) -> None:
    task = smartwatch(model)
    recording = Recording("p", windows(5), windows(40))
    bench = _bench(task, {"d": recording})
    weights = weights_of(task.model())
    weights += RNG.normal(size=weights.shape).astype(np.float32)
    truth = np.array(answers(task, weights, recording.live))
    named = replace(bench.recordings["d"].live, y=truth)
    assert bench.only_head is only_head
    assert bench.right(weights, named).all()
    assert not bench.right(weights, replace(named, y=(truth + 1) % 7)).any()
    assert (bench.first == weights_of(task.model())).all(), "a device alone begins where the task does"


def test_a_bench_sees_readings_clipped_and_what_goes_into_a_head_whole() -> None:
    narrow = replace(smartwatch("features"), signature=replace(smartwatch("features").signature, low=-0.5, high=0.5))
    far = windows(20)
    near = replace(far, x=far.x.clip(-0.5, 0.5))
    bench = _bench(narrow, {"far": Recording("p", far, far), "near": Recording("p", near, near)})
    seen = bench.recordings["far"].live.x
    assert np.array_equal(seen, bench.recordings["near"].live.x)
    assert np.array_equal(bench.task.signature.clipped(seen * 100), seen * 100)


def test_windows_right_are_counted_by_device() -> None:
    parts = {"a": windows(3), "b": windows(0), "c": windows(2)}
    assert len(Windows.joined(parts.values())) == 5
    right = np.array([True, False, True, True, False])
    assert _by_device(right, parts) == {"a": 2, "b": 0, "c": 1}


def test_bases_are_spread_with_the_first_the_last_and_those_released() -> None:
    bases = [BaseRow(n, n, "", "", "", True) for n in range(100)]
    chosen = [base.number for base in _spread(bases, 5, {7})]
    assert chosen == [0, 7, 25, 50, 74, 99]
    assert [base.number for base in _spread(bases[:3], 5, set())] == [0, 1, 2]


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    rows = Measurements(
        seen=(Seen("a", "p", False, 60, 20, 9, 4, 4000), Seen("b", "q", True, 60, 20)),
        judged=(Judged(0, "int8", {"a": 10, "b": 70}),),
        own=(Own("a", 0, None, 12),),
        lent=(Lent("a", 30),),
        spent=(Spent("a", [1.0, 2.5], 1, 8.0), Spent("b", [None], 0, None)),
    )
    rows.save(tmp_path)
    assert Measurements.load(tmp_path) == rows


def test_a_device_held_out_is_judged_on_all_it_saw() -> None:
    assert Seen("a", "p", False, 60, 20).judged == 20
    assert Seen("a", "p", True, 60, 20).judged == 80


@pytest.mark.parametrize("line", ["", "{", '{"at": "2026', "[]", "3", '{"at": 3, "who": "n", "event": "x"}', "{}"])
def test_a_line_of_the_log_that_a_power_cut_broke_is_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / "events.jsonl").write_text(f"{line}\n")
    assert _events(tmp_path / "events.jsonl") == ()


def test_a_whole_line_of_the_log_is_an_event(tmp_path: Path) -> None:
    line = '{"at": "2026-01-01T03:30:00+00:00", "who": "n", "event": "staged", "release": 1}'
    (tmp_path / "events.jsonl").write_text(f"{line}\n")
    (event,) = _events(tmp_path / "events.jsonl")
    assert (event.hour, event.who, event.name, event.fields) == (3.5, "n", "staged", {"release": 1})
