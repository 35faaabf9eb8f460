"""Gaussian noise on an integer lattice, from a key that the operating system drew.

Rounding the noise to the lattice and adding it to a lattice point equals rounding the sum of both, so the
release is post-processing of the exact Gaussian mechanism. The normal numbers are sums of four draws halved
(Holohan and Braghin, "Secure random sampling in differential privacy", 2021), against attacks on float bits.
"""

import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms


class LatticeGaussian:
    """A source of Gaussian integers. The key comes from the operating system and never leaves."""

    def __init__(self) -> None:
        # RFC 8439 counter and nonce start at zero: the key is used by this one stream only.
        self._stream = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()

    def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
        """``size`` draws of N(0, std²) rounded to integers, int64."""
        return np.rint(self._normal(size) * std).astype(np.int64)

    def _normal(self, size: int) -> npt.NDArray[np.float64]:
        """Standard normal draws by Box and Muller, each the sum of four from different pairs, halved."""
        half = (size + 1) // 2
        radius = np.sqrt(-2 * np.log(self._uniform(4 * half)))
        angle = 2 * np.pi * self._uniform(4 * half)
        cosines, sines = radius * np.cos(angle), radius * np.sin(angle)
        # Both of a pair in one sum would be one draw with two coordinates: the sines move on by one place.
        draws = np.concatenate([cosines, np.roll(sines, 1)])
        total: npt.NDArray[np.float64] = draws.reshape(4, 2 * half).sum(axis=0) / 2
        return total[:size]

    def _uniform(self, size: int) -> npt.NDArray[np.float64]:
        """Draws from (0, 1], 53 bits each."""
        words = np.frombuffer(self._stream.update(bytes(8 * size)), dtype=np.uint64) >> np.uint64(11)
        return (words.astype(np.float64) + 1) * 2.0**-53
