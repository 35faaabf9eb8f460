"""SPAR: ten people, each with a watch on either wrist, doing seven shoulder exercises."""

import importlib.util
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fleet.errors import MissingExtraError, TaskError
from fleet.signing import sha256
from fleet.task import Recording, Windows

CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
SAMPLES = 100  # two seconds at 50 Hz
CHANNELS = 6  # accelerometer x, y, z in g, then gyroscope x, y, z in rad/s
TRAINING_SHARE = 0.7
DIGEST = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"  # in seglearn 1.0.0 to 1.2.5

_SIDES = ("left", "right")
# A right arm is the mirror image of a left one. The watch's x points to the hand on the left and to the elbow on the
# right, its y and z alike; a mirror turns rotations round besides.
_MIRROR = np.array([-1, 1, 1, 1, -1, -1], np.float32)
_WINDOW = (CHANNELS, SAMPLES)


@dataclass(frozen=True, slots=True)
class _Exercise:
    """One exercise by one wrist: ``samples`` float32 ``(time, 6)``."""

    device: str
    label: int
    samples: npt.NDArray[np.float32]


def recordings() -> dict[str, Recording]:
    """What the twenty watches saw, by device name such as ``person03-left``.

    Readings are those of a left wrist: a watch knows its side from its settings, and the right ones are mirrored.
    Windows are float32 ``(6, 100)``, disjoint. The first 70 % of every exercise is training and the rest is
    live; no window crosses that border. Either stream mixes the exercises in proportion from its first window on.

    Raises:
        MissingExtraError: seglearn, which carries the data, is not installed.
        TaskError: Its file is not the data set we know.
    """
    return dict(_recordings())


@cache
def _recordings() -> dict[str, Recording]:
    exercises = _read(_file())
    devices = sorted({exercise.device for exercise in exercises})
    return {device: _recording(device, [e for e in exercises if e.device == device]) for device in devices}


def _file() -> Path:
    # Importing seglearn would need pandas: only its file is wanted.
    package = importlib.util.find_spec("seglearn")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("the smartwatch data comes with seglearn: pip install 'edgefleet[simulate]'")
    return Path(package.submodule_search_locations[0]) / "data" / "watch_dataset.npy"


def _read(file: Path) -> list[_Exercise]:
    """An object array, which its publisher pickled: these bytes are unpickled, and no others."""
    try:
        stored = file.read_bytes()
    except OSError as error:
        raise TaskError(f"{file} cannot be read ({error.strerror}); reinstall seglearn") from error
    if sha256(stored) != DIGEST:
        raise TaskError(
            f"{file} is not the SPAR data set that we know, its SHA-256 differs: pip install --force-reinstall "
            "seglearn==1.2.5"
        )
    data = np.load(io.BytesIO(stored), allow_pickle=True).item()
    rows = zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    return [_exercise(*row) for row in rows]


def _exercise(samples: npt.ArrayLike, label: int, subject: int, side: int) -> _Exercise:
    values = np.asarray(samples, dtype=np.float32)
    worn = _SIDES[int(side)]
    return _Exercise(f"person{int(subject):02d}-{worn}", int(label), values if worn == "left" else values * _MIRROR)


def _recording(device: str, exercises: Iterable[_Exercise]) -> Recording:
    train, live = [], []
    for exercise in sorted(exercises, key=lambda exercise: exercise.label):
        border = int(len(exercise.samples) * TRAINING_SHARE)
        train.append((exercise.label, list(_cut(exercise.samples[:border]))))
        live.append((exercise.label, list(_cut(exercise.samples[border:]))))
    return Recording(device.partition("-")[0], _merge(train), _merge(live))


def _cut(samples: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, len(samples) - SAMPLES + 1, SAMPLES):
        yield np.ascontiguousarray(samples[start : start + SAMPLES].T)


def _merge(parts: Iterable[tuple[int, list[npt.NDArray[np.float32]]]]) -> Windows:
    """One stream, ordered by how far along its own exercise each window lies."""
    placed = [
        ((index + 0.5) / len(windows), label, window)
        for label, windows in parts
        for index, window in enumerate(windows)
    ]
    placed.sort(key=lambda entry: entry[:2])
    x = np.stack([window for _, _, window in placed]) if placed else np.zeros((0, *_WINDOW), np.float32)
    return Windows(x, np.array([label for _, label, _ in placed], np.int64))
