"""Windows that share data: in how many of them one stretch lies.

Data are shared where they are the same bit for bit: what was filtered or standardised window by window is not seen.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from hashlib import sha256

import numpy as np
import numpy.typing as npt

_DISTINCT = 8  # fewer different values agree by accident: silence, padding, a border of black pixels
_BASE = 0x9E3779B97F4A7C15


def most_windows(x: npt.NDArray[np.float32]) -> int:
    """In how many windows ``(n, ...)`` one stretch lies, whichever axis is time."""
    return max(_windows_per_stretch(np.moveaxis(x, axis, -1)) for axis in range(1, x.ndim))


def on_two_devices(x: Mapping[str, npt.NDArray[np.float32]]) -> tuple[str, str] | None:
    """Two devices that hold the same whole window, of their windows ``(n, ...)`` by name; None if no two do."""
    holder: dict[bytes, str] = {}
    for name, windows in x.items():
        for window in windows:
            first = holder.setdefault(sha256(window.tobytes()).digest(), name)
            if first != name and len(np.unique(window)) >= _DISTINCT:
                return first, name
    return None


def _windows_per_stretch(x: npt.NDArray[np.float32]) -> int:
    """In how many of the windows ``(n, ..., time)`` the most repeated moment lies; 1 if none share data."""
    links: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for earlier, later, shift in _overlaps(x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])):
        links[earlier].append((later, shift))
        links[later].append((earlier, -shift))
    start: dict[int, int] = {}  # of each window, on one clock for all that hang together
    most = 1
    for first in links:
        if first in start:
            continue
        start[first], group = 0, [first]
        for window in group:  # which grows as it is walked
            fresh = {other: start[window] + shift for other, shift in links[window] if other not in start}
            start.update(fresh)
            group.extend(fresh)
        starts = np.sort([start[window] for window in group])
        ended = np.searchsorted(starts, starts - x.shape[-1], side="right")
        most = max(most, int((np.arange(1, len(starts) + 1) - ended).max()))
    return most


def _overlaps(x: npt.NDArray[np.float32]) -> Iterator[tuple[int, int, int]]:
    """``(i, j, shift)`` where window ``j`` begins ``shift`` steps after window ``i`` and repeats the rest of it."""
    steps = x.shape[-1]
    heads, tails = _fingerprints(x)
    for shift in range(steps):
        begins = defaultdict(list)
        for j, mark in enumerate(heads[:, steps - shift - 1].tolist()):
            begins[mark].append(j)
        for i, mark in enumerate(tails[:, shift].tolist()):
            alike = [j for j in begins.get(mark, []) if j > i or (shift and j != i)]
            if alike and len(np.unique(x[i, :, shift:])) >= _DISTINCT:
                equal = (j for j in alike if np.array_equal(x[i, :, shift:], x[j, :, : steps - shift]))
                yield from ((i, j, shift) for j in equal)


def _fingerprints(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Polynomial hashes modulo 2^64, ``(n, time)``: of steps ``0..k``, and of all from step ``k`` on."""
    keys = np.random.default_rng(0).integers(2**63, size=x.shape[1], dtype=np.uint64)
    digits = np.einsum("nct,c->nt", np.ascontiguousarray(x).view(np.uint32).astype(np.uint64), keys)
    powers, inverses = (
        np.array([pow(base, k, 2**64) for k in range(x.shape[-1])], np.uint64)
        for base in (_BASE, pow(_BASE, -1, 2**64))
    )
    heads = np.cumsum(digits * powers, axis=1, dtype=np.uint64)
    return heads, (heads[:, -1:] - heads + digits * powers) * inverses
