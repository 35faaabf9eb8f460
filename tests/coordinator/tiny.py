"""A task so small that a node's child learns it in no time; light to import, for that child does."""

from torch import nn

from fleet.task import PrivacyUnit, Signature, Task, Training


def linear() -> nn.Module:
    return nn.Sequential(nn.Hardtanh(-4, 4), nn.Linear(4, 3))


TASK = Task(
    name="tiny",
    model=linear,
    signature=Signature("x", (4,), -4.0, 4.0, ("sit", "walk", "run")),
    unit=PrivacyUnit("window"),
    training=Training(learning_rate=0.1, examples=10),
    devices=dict,
)
