"""The toy task with one layer to train: a process that learns it for one message loads torch, and nothing above it."""

import torch
from torch import nn

from fleet.task import PrivacyUnit, Signature, Task, Training


def build_model() -> nn.Module:
    """Two numbers in, left or right out; where a point lies is read off by a layer that never changes."""
    first = nn.Linear(2, 4)
    first.requires_grad_(False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0]] * 4))
        first.bias.zero_()
    return nn.Sequential(first, nn.Hardtanh(), nn.Linear(4, 2))


TASK = Task(
    name="toy",
    model=build_model,
    signature=Signature("x", (2,), -1.0, 1.0, ("left", "right")),
    unit=PrivacyUnit("a point"),
    training=Training(learning_rate=0.5, examples=10),
    devices=dict,
)
