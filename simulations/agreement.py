"""Whether a task's artifact answers as its model does in float32: ranges that are far too wide leave int8 no digits."""

from collections.abc import Sequence

import numpy as np

from fleet.artifact import Float32, logits, open_session
from fleet.quantization import Template
from fleet.task import Task, set_weights
from fleet.weights import Flat

ENOUGH = 0.95  # models with fit ranges reach 0.98 on a donor, and those with useless ones half of it


def disagreement(task: Task, template: Template, weights: Flat) -> Sequence[str]:
    """What to say of int8 and float32 with these weights on the donor's windows; nothing where they mostly agree.

    They are public. Without a donor there is no window that says what readings are like.
    """
    windows = task.donor() if task.donor else None
    if windows is None or len(windows) == 0:
        return ()
    share = agreement(task, weights, template.artifact(template.quantize(weights)), windows.x)
    if share >= ENOUGH:
        return ()
    found = f"int8 and float32 name the same class in {share:.0%} of the donor's windows"
    return (f"{found}: bring low and high near to what readings are, and put Hardtanh after a division",)


def agreement(task: Task, weights: Flat, artifact: bytes, x: Float32) -> float:
    """The share of ``x`` that the artifact and the torch model with the ``weights`` of its master name alike."""
    import torch

    model = task.model().eval()
    set_weights(model, weights)
    with torch.no_grad():
        exact = model(torch.from_numpy(task.signature.clipped(x))).argmax(1).numpy()
    return float(np.mean(logits(open_session(artifact), x).argmax(1) == exact))
