"""A recording fed to a node's local API, reading by reading, as its sensor would."""

import csv
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from fleet.errors import InputError, UsageError
from fleet.task import Windows
from node.client import Client

_BROKEN = (ValueError, LookupError, TypeError, EOFError, BadZipFile, zlib.error, csv.Error)


def read(path: Path) -> Windows:
    """A recording in arrival order: ``.npz`` with ``x`` and ``y``, or CSV whose last column is the class's index.

    A CSV has a header and one reading a line, its values in the order of the flattened reading.

    Raises:
        UsageError: It cannot be read, or a reading or a class is no finite number; says why.
    """
    try:
        return _npz(path) if path.suffix == ".npz" else _csv(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except _BROKEN as error:
        raise UsageError(f"{path} is no recording: {error}; it needs x and y (.npz), or a CSV with a header") from error


def _npz(path: Path) -> Windows:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
        return _windows(data["x"], data["y"])


def _csv(path: Path) -> Windows:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:] if row]
    table = np.array(rows, np.float64)
    return _windows(table[:, :-1], table[:, -1])


def _windows(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Windows:
    """``x`` ``(n, *shape)`` and ``y`` ``(n,)`` of any kind of number, if they are readings and classes."""
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "fiu":
        raise ValueError(f"x is {x.dtype} and y {y.dtype}, which are not numbers")
    if x.ndim < 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x has the shape {x.shape} and y {y.shape}, not (n, ...) and (n,)")
    with np.errstate(over="ignore"):
        readings = x.astype(np.float32)
    finite = np.isfinite(readings.reshape(len(x), -1)).all(axis=1) & np.isfinite(y)
    if not finite.all():
        raise ValueError(f"reading {int(finite.argmin())} has values that are not finite")
    if (y != np.rint(y)).any():
        raise ValueError("y is not the indices of classes")
    return Windows(readings, y.astype(np.int64))


def replay(
    windows: Windows,
    to: str,
    *,
    rate: float,
    labels: bool,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Send every reading at its time, ``rate`` a second; how many were answered, answered right, and labelled.

    Raises:
        InputError: The node refuses a reading or a label.
        LinkError: The node does not answer.
    """
    client = Client(to)
    if len(windows) and windows.x[0].size != np.prod(client.shape):
        raise InputError(f"the recording has {windows.x[0].size} values a reading, the node takes {client.shape}")
    begun, right, labelled = clock(), 0, 0
    for number, (x, y) in enumerate(zip(windows.x, windows.y, strict=True)):
        sleep(max(0.0, begun + number / rate - clock()))
        answer = client.infer(x.reshape(client.shape))
        right += answer.index == int(y)
        labelled += client.label(answer.id, int(y)) if labels else 0
    return {"answers": len(windows), "right": right, "labelled": labelled}
