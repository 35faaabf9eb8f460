"""From admitted updates to one mean: screen, clip to the median, hear copies once, average."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.voices import voices
from fleet.weights import Flat

SCREEN_FACTOR = 3.0
SCREEN_NEEDS = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """An admitted update: its key, its delta's name in the vault and Euclidean norm, and how old its base was."""

    key: str
    payload: str
    norm: float
    staleness: int


def staleness_weight(staleness: int) -> float:
    """How much a delta from an older base counts: 1/√(1+s) (Xie, Koyejo and Gupta 2019, polynomial, a = 1/2)."""
    return float((1 + staleness) ** -0.5)


def mean(entries: Sequence[Entry], read: Callable[[str], Flat]) -> Flat:
    """The plain mean of the deltas, read one at a time, in the order of their keys."""
    return _average(entries, [1.0] * len(entries), read)


def screened_mean(entries: Sequence[Entry], read: Callable[[str], Flat]) -> Flat:
    """The mean after dropping norms above three medians, clipping the others to the median, and hearing copies once.

    The share of one node in the mean is at most the median norm over the nodes kept. Of an even number of norms the
    median is the lower one of the middle: of two, one alone decides nothing. Of fewer than five updates all are kept
    and none is a copy.
    """
    median = sorted(entry.norm for entry in entries)[(len(entries) - 1) // 2]
    kept = sorted(entries, key=lambda entry: entry.key)
    heard = np.ones(len(kept))
    if len(entries) >= SCREEN_NEEDS:
        kept = [entry for entry in kept if entry.norm <= SCREEN_FACTOR * median]
        heard = voices([entry.payload for entry in kept], read)
    clipped = [min(1.0, median / entry.norm) if entry.norm else 1.0 for entry in kept]
    return _average(kept, [factor * voice for factor, voice in zip(clipped, heard.tolist(), strict=True)], read)


RULES = {"mean": mean, "screened-mean": screened_mean}


def _average(entries: Sequence[Entry], factors: Sequence[float], read: Callable[[str], Flat]) -> Flat:
    """Summed in float64 in the order of keys, so that the same updates give the same bits."""
    total: np.ndarray[tuple[int], np.dtype[np.float64]] | None = None
    for entry, factor in sorted(zip(entries, factors, strict=True), key=lambda pair: pair[0].key):
        part = read(entry.payload).astype(np.float64) * (factor * staleness_weight(entry.staleness))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("a mean of no updates")
    return (total / len(entries)).astype(np.float32)
