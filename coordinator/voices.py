"""Who speaks with whose voice: deltas that are more alike than honest ones can be are heard as one."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fleet.weights import Flat

ALIKE = 5.0  # deviations
WIDTH = 4096


def voices(digests: Sequence[str], read: Callable[[str], Flat]) -> npt.NDArray[np.float64]:
    """How much of a voice each delta has, ``(deltas,)``: one over how many, itself included, say the same.

    Two say the same if their cosine is above the median of all pairs by five deviations: 1.4826 times the median
    absolute deviation, or 1/√d, what chance gives directions in d dimensions, if that is more. An honest session has
    noise of its own, and more of it than of anything shared; a gang that repeats itself has not. After FoolsGold (Fung,
    Yoon and Beschastnikh 2020, section 4), with this threshold for its scores.
    """
    sketches = _sketches(digests, read)
    cosines = sketches @ sketches.T
    pairs = cosines[np.triu_indices(len(digests), 1)]
    usual = np.median(pairs)
    deviation = max(1.4826 * np.median(np.abs(pairs - usual)), sketches.shape[1] ** -0.5)
    alike = cosines > usual + ALIKE * deviation
    np.fill_diagonal(alike, val=True)
    shared: npt.NDArray[np.float64] = 1 / alike.sum(axis=1)
    return shared


def _sketches(digests: Sequence[str], read: Callable[[str], Flat]) -> npt.NDArray[np.float64]:
    """A row for each delta, of length one or zero, that keeps cosines: up to 4096 weights exactly, else to about 1/64.

    Each weight gets a sign and is added to one of the row's places (Charikar, Chen and Farach-Colton 2002, section 3).
    The signs follow from all deltas together: nobody knows them who has not seen everybody's.
    """
    seed = hashlib.sha256("".join(digests).encode()).digest()
    signs, rows = np.zeros(0), []
    for digest in digests:
        delta = read(digest).astype(np.float64)
        if not signs.size:
            signs = np.random.default_rng(list(seed)).choice([-1.0, 1.0], delta.size)
        width = min(delta.size, WIDTH)
        row = np.pad(delta * signs, (0, -delta.size % width)).reshape(-1, width).sum(axis=0)
        rows.append(row / (np.linalg.norm(row) or 1.0))
    return np.stack(rows)
