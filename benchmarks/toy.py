"""A task so small that what is measured is the fleet around it: does a point lie left or right?"""

import numpy as np
from torch import nn

from fleet.task import PrivacyUnit, Signature, Task, Training, Windows


def build_model() -> nn.Module:
    """22 weights."""
    return nn.Sequential(nn.Linear(2, 4), nn.Hardtanh(), nn.Linear(4, 2))


def points(count: int, seed: int) -> Windows:
    """Points with the truth about them, none near the border."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    x[:, 0] = np.sign(x[:, 0]) * (0.1 + 0.9 * np.abs(x[:, 0]))
    return Windows(x, (x[:, 0] > 0).astype(np.int64))


TASK = Task(
    name="toy",
    model=build_model,
    signature=Signature("x", (2,), -1.0, 1.0, ("left", "right")),
    unit=PrivacyUnit("a point"),
    training=Training(learning_rate=0.1, examples=10),
    devices=dict,
    donor=lambda: points(200, seed=0),
)
