"""Who speaks with whose voice: deltas that are more alike than honest ones can be are heard as one."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from fleet.weights import Flat

ALIKE = 5.0  # deviations
WIDTH = 4096
COMPARED = 1000

Rows = npt.NDArray[np.float32]


def voices(digests: Sequence[str], read: Callable[[str], Flat]) -> npt.NDArray[np.float64]:
    """How much of a voice each delta has, ``(deltas,)``: one over how many, itself included, say the same.

    An honest private delta has noise of its own, longer than all it shares: the median cosine of all pairs is what two
    share, and its root what one shares with the common direction itself. Two say the same if their cosine is above that
    root by five deviations: 1.4826 times the median absolute deviation, or 1/√d, what chance gives directions in d
    dimensions, if that is more. So nobody makes an honest node a copy without its very noise; and where noise is not
    what they mostly are, or d is 25 or less, nobody is one. After FoolsGold (Fung, Yoon and Beschastnikh 2020, section
    4), with this threshold for its scores.

    In a cohort of more than a thousand each is compared with a thousand drawn at random, and how many say the same is
    estimated from these: a gang of a few may not be seen there.
    """
    rng = np.random.default_rng(list(hashlib.sha256("".join(digests).encode()).digest()))
    sketches = _sketches(digests, read, rng)
    compared = rng.permutation(len(sketches))[:COMPARED]
    cosines = sketches @ sketches[compared].T
    cosines[compared, np.arange(len(compared))] = np.nan  # each with itself
    usual = np.nanmedian(cosines)
    deviation = max(1.4826 * np.nanmedian(np.abs(cosines - usual)), sketches.shape[1] ** -0.5)
    alike = (cosines > np.sqrt(max(usual, 0.0)) + ALIKE * deviation).sum(axis=1)
    others = np.count_nonzero(~np.isnan(cosines), axis=1)
    heard: npt.NDArray[np.float64] = 1 / (1 + alike * (len(sketches) - 1) / others)
    return heard


def _sketches(digests: Sequence[str], read: Callable[[str], Flat], rng: np.random.Generator) -> Rows:
    """A row for each delta, of length one or zero, that keeps cosines: up to 4096 weights exactly, else to about 1/64.

    Each weight gets a sign and is added to one of the row's places (Charikar, Chen and Farach-Colton 2002, section 3).
    The signs, as all that ``rng`` draws, follow from all deltas together: nobody knows them who has not everybody's.
    """
    deltas = (read(digest) for digest in digests)
    first = next(deltas)
    signs = rng.choice([-1.0, 1.0], first.size)
    rows = np.empty((len(digests), min(first.size, WIDTH)), np.float32)
    for row, delta in zip(rows, chain([first], deltas), strict=True):
        signed = np.pad(delta * signs, (0, -delta.size % len(row)))
        added = signed.reshape(-1, len(row)).sum(axis=0)
        row[:] = added / (np.linalg.norm(added) or 1.0)
    return rows
