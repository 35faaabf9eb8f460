"""Whether an example's gradient depends on its neighbours in the batch: clipping would bound nobody's share."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fleet.task import Signature

MIXES = "mixes the examples of a batch: one changes the gradient of another"
Gradient = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]  # of the first example of a batch


def mixes(gradient: Gradient, signature: "Signature") -> bool:
    """Whether ``gradient``, of the first of two examples, changes with the second.

    One middling example is tried beside a random one, silence in the middle of the range, and its two ends; what it
    gives is compared relative to itself, for a model that is sure has small gradients. The same dice fall every time.
    A few neighbours show what depends on means and extremes; they prove nothing of the rest.
    """
    import torch

    rows = []
    for batch in _beside_others(signature):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rows.append(gradient(batch))
    smallest = 1e-5 * np.abs(rows[0]).max(initial=0.0)
    return not all(np.allclose(rows[0], row, rtol=1e-3, atol=smallest, equal_nan=True) for row in rows[1:])


def _beside_others(signature: "Signature") -> Iterator[npt.NDArray[np.float32]]:
    low, high, shape = signature.low, signature.high, signature.shape
    middle = low / 2 + high / 2
    one, other = np.random.default_rng(0).uniform(low, high, (2, *shape))
    for neighbour in (other, *(np.full(shape, value) for value in (middle, low, high))):
        yield np.stack([middle + (one - middle) / 2, neighbour]).astype(np.float32)
