"""One private release: clip, sum on a lattice, add noise, divide by a public constant."""

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

PITCH = 2.0**-20


class Noise(Protocol):
    """Where noise comes from: ``LatticeGaussian``, or a fixed source in a test."""

    def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
        """``size`` draws of N(0, std²), rounded."""


def private_sum(
    gradients: npt.NDArray[np.float64],
    *,
    clipping_norm: float,
    noise_multiplier: float,
    noise: Noise,
) -> npt.NDArray[np.float64]:
    """The noisy sum of clipped per-example gradients, shape ``(size,)``.

    Adding or removing one example moves the sum, before noise, by at most the sensitivity that the noise is
    scaled to. A non-finite example counts as zero. The noise does not depend on how many examples there are.

    Args:
        gradients: ``(examples, size)`` float64.
        clipping_norm: Longest contribution of one example, Euclidean.
        noise_multiplier: Noise standard deviation over sensitivity; 0 adds none.
        noise: Source of the lattice noise.
    """
    size = gradients.shape[1]
    pitch = clipping_norm * PITCH
    total = np.rint(clip(gradients, clipping_norm) / pitch).astype(np.int64).sum(axis=0)
    if noise_multiplier:
        # Rounding each coordinate to the lattice moves an example by half a pitch per coordinate at most.
        sensitivity = clipping_norm + pitch * math.sqrt(size) / 2
        total += noise.integers(size, noise_multiplier * sensitivity / pitch)
    noisy: npt.NDArray[np.float64] = total * pitch
    return noisy


def clip(gradients: npt.NDArray[np.float64], clipping_norm: float) -> npt.NDArray[np.float64]:
    """Each row scaled down to at most ``clipping_norm``; a row that is not finite becomes zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", gradients, gradients))
    usable = np.isfinite(norms)
    factors = np.where(usable, np.minimum(1.0, clipping_norm / np.maximum(norms, 1e-300)), 0.0)
    finite = gradients if usable.all() else np.where(usable[:, None], gradients, 0.0)
    return finite * factors[:, None]
