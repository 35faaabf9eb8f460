"""The smartwatch data set."""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.errors import MissingExtraError, TaskError
from fleet.task import Windows
from simulations import spar

RECORDINGS = spar.recordings()


def test_ten_people_wear_twenty_devices() -> None:
    assert len(RECORDINGS) == 20
    assert Counter(seen.person for seen in RECORDINGS.values()) == {f"person{i:02d}": 2 for i in range(1, 11)}
    assert {"person03-left", "person03-right"} < set(RECORDINGS)


def test_every_device_saw_all_seven_exercises_early_and_late() -> None:
    kinds = [len(np.unique(part.y)) for seen in RECORDINGS.values() for part in (seen.train, seen.live)]
    assert kinds == [7] * 40


def test_the_file_holds_140_exercises() -> None:
    assert len(spar._read(spar._file())) == 140


def test_windows_are_channels_first_and_finite() -> None:
    for seen in RECORDINGS.values():
        for part in (seen.train, seen.live):
            assert part.x.dtype == np.float32
            assert part.x.shape == (len(part), 6, 100)
            assert part.y.dtype == np.int64
            assert np.isfinite(part.x).all()


def test_no_sample_is_in_two_windows() -> None:
    for seen in RECORDINGS.values():
        samples = np.concatenate([part.x.transpose(0, 2, 1).reshape(-1, 6) for part in (seen.train, seen.live)])
        repeated = len(samples) - len(np.unique(samples, axis=0))
        assert repeated < len(samples) / 100  # a resting arm gives equal readings by chance, not a hundred in a row


def test_training_comes_from_the_first_seventy_percent_of_an_exercise() -> None:
    exercise = next(e for e in spar._read(spar._file()) if e.device == "person01-left" and e.label == 0)
    border = int(len(exercise.samples) * 0.7)
    early, late = (list(spar._cut(part)) for part in (exercise.samples[:border], exercise.samples[border:]))
    seen = RECORDINGS["person01-left"]
    assert np.array_equal(seen.train.x[seen.train.y == 0], early)
    assert np.array_equal(seen.live.x[seen.live.y == 0], late)


def test_a_right_wrist_reads_as_the_left_one_it_mirrors() -> None:
    """x points the other way along the arm; rotations about the other two axes turn the other way round."""
    stored = np.load(spar._file(), allow_pickle=True).item()
    sides = {int(side): i for i, side in enumerate(stored["side"])}
    for side, signs in ((0, [1, 1, 1, 1, 1, 1]), (1, [-1, 1, 1, 1, -1, -1])):
        samples = np.asarray(stored["X"][sides[side]], np.float32)
        read = spar._exercise(samples, 0, 1, side)
        assert read.device.endswith(("left", "right")[side])
        assert np.array_equal(read.samples, samples * np.array(signs, np.float32))


@pytest.mark.parametrize("part", ["train", "live"])
def test_any_beginning_of_a_stream_has_the_exercises_in_proportion(part: str) -> None:
    for seen in RECORDINGS.values():
        windows: Windows = getattr(seen, part)
        whole = np.bincount(windows.y, minlength=7) / len(windows)
        for length in range(1, len(windows) + 1):
            begun = np.bincount(windows.y[:length], minlength=7)
            assert np.abs(begun - whole * length).max() <= 1.5


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgefleet\[simulate\]'"):
        spar._file()


class Hostile:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


def test_no_bytes_but_those_of_the_data_set_are_unpickled(tmp_path: Path) -> None:
    file, trace = tmp_path / "watch_dataset.npy", tmp_path / "hijacked"
    np.save(file, np.array([Hostile(trace)], dtype=object), allow_pickle=True)
    with pytest.raises(TaskError, match=r"its SHA-256 differs: pip install --force-reinstall seglearn==1\.2\.5"):
        spar._read(file)
    assert not trace.exists()
    np.load(file, allow_pickle=True)
    assert trace.exists(), "it would have been hijacked"


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    stored = bytearray(spar._file().read_bytes())
    stored[len(stored) // 2] ^= 1
    (tmp_path / "watch_dataset.npy").write_bytes(stored)
    with pytest.raises(TaskError, match=r"watch_dataset\.npy is not the SPAR data set"):
        spar._read(tmp_path / "watch_dataset.npy")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=f"{tmp_path} cannot be read"):
        spar._read(tmp_path)
