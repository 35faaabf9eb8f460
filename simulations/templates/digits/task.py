"""Handwritten digits on twelve devices, each of which sees some digits more often than others."""

import numpy as np
import torch
from torch import nn

from fleet.errors import MissingExtraError
from fleet.task import PrivacyUnit, Recording, Signature, Task, Training, Windows

DEVICES = 12
PUBLIC = 57  # images that anyone may see: release 0 is fitted to them
TRAINING_SHARE = 0.6


def build_model() -> nn.Module:
    """A small network. It computes each example on its own (no BatchNorm) and every activation is bounded,
    so that it learns under privacy and becomes int8 without looking at data."""
    model = nn.Sequential(Pixels(), nn.Linear(64, 24), nn.Hardtanh(), nn.Linear(24, 10))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)
    return model


class Pixels(nn.Module):
    """Images ``(batch, 1, 8, 8)`` of 0 to 16 as rows ``(batch, 64)`` of 0 to 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) / 16).clamp(0, 1)


def load_recordings() -> dict[str, Recording]:
    """What each device saw, in order of arrival: its own mix of digits, the first 60 % for training."""
    x, y = _images()
    owners = _owners(y[PUBLIC:])
    return {f"device{d:02d}": _recording(d, x[PUBLIC:][owners == d], y[PUBLIC:][owners == d]) for d in range(DEVICES)}


def load_public() -> Windows:
    """The public images."""
    x, y = _images()
    return Windows(x[:PUBLIC], y[:PUBLIC])


def _recording(device: int, x: np.ndarray, y: np.ndarray) -> Recording:
    border = int(len(y) * TRAINING_SHARE)
    return Recording(f"writer{device:02d}", Windows(x[:border], y[:border]), Windows(x[border:], y[border:]))


def _images() -> tuple[np.ndarray, np.ndarray]:
    """Shuffled once and for all: float32 ``(1797, 1, 8, 8)`` and int64 ``(1797,)``."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the digits come with scikit-learn: pip install 'edgefleet[simulate]'") from error
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return digits.images[order, None].astype(np.float32), digits.target[order].astype(np.int64)


def _owners(y: np.ndarray) -> np.ndarray:
    """The device of each image: every digit is dealt out in its own uneven shares."""
    rng = np.random.default_rng(1)
    owners = np.empty(len(y), dtype=int)
    for digit in range(10):
        shares = rng.dirichlet(np.full(DEVICES, 5.0))
        owners[y == digit] = rng.choice(DEVICES, size=int((y == digit).sum()), p=shares)
    return owners


TASK = Task(
    name="digits",
    model=build_model,
    signature=Signature(input="x", shape=(1, 8, 8), low=0.0, high=16.0, classes=tuple("0123456789")),
    unit=PrivacyUnit("one image"),
    training=Training(learning_rate=20.0, examples=100),
    devices=load_recordings,
    donor=load_public,
)
