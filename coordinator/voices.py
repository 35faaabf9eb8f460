"""Who speaks with whose voice: deltas that are more alike than honest ones can be are heard as one."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fleet.weights import Flat

ALIKE = 5.0  # deviations
WIDTH = 4096
COMPARED = 1000


def voices(digests: Sequence[str], read: Callable[[str], Flat]) -> npt.NDArray[np.float64]:
    """How much of a voice each delta has, ``(deltas,)``: one over how many, itself included, say the same.

    Two say the same if their cosine is above the median of all pairs by five deviations: 1.4826 times the median
    absolute deviation, or 1/√d, what chance gives directions in d dimensions, if that is more. An honest session has
    noise of its own, and more of it than of anything shared; a gang that repeats itself has not. After FoolsGold (Fung,
    Yoon and Beschastnikh 2020, section 4), with this threshold for its scores. In a cohort of more than a thousand each
    is compared with a thousand drawn at random, and how many say the same is estimated from these.
    """
    rng = np.random.default_rng(list(hashlib.sha256("".join(digests).encode()).digest()))
    sketches = _sketches(digests, read, rng)
    compared = rng.permutation(len(sketches))[:COMPARED]
    cosines = sketches @ sketches[compared].T
    cosines[compared, np.arange(len(compared))] = np.nan  # each with itself
    usual = np.nanmedian(cosines)
    deviation = max(1.4826 * np.nanmedian(np.abs(cosines - usual)), sketches.shape[1] ** -0.5)
    alike = (cosines > usual + ALIKE * deviation).sum(axis=1)
    others = np.count_nonzero(~np.isnan(cosines), axis=1)
    heard: npt.NDArray[np.float64] = 1 / (1 + alike * (len(sketches) - 1) / others)
    return heard


def _sketches(digests: Sequence[str], read: Callable[[str], Flat], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A row for each delta, of length one or zero, that keeps cosines: up to 4096 weights exactly, else to about 1/64.

    Each weight gets a sign and is added to one of the row's places (Charikar, Chen and Farach-Colton 2002, section 3).
    The signs, as all that ``rng`` draws, follow from all deltas together: nobody knows them who has not everybody's.
    """
    signs, rows = np.zeros(0), []
    for digest in digests:
        delta = read(digest).astype(np.float64)
        if not signs.size:
            signs = rng.choice([-1.0, 1.0], delta.size)
        width = min(delta.size, WIDTH)
        row = np.pad(delta * signs, (0, -delta.size % width)).reshape(-1, width).sum(axis=0)
        rows.append(row / (np.linalg.norm(row) or 1.0))
    return np.stack(rows)
