"""The last layer of a model: which one it is, and what goes into it."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def head_of(model: "torch.nn.Module", shape: tuple[int, ...]) -> "torch.nn.Linear | None":
    """The linear layer with weights to train whose very output the model returns.

    ``shape`` is that of one example. None if there is no such layer, or if it is asked more than once.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.requires_grad:
            result, seen = watched(model, module, torch.zeros(1, *shape))
            if len(seen) == 1 and result is seen[0][1]:
                return module
    return None


def watched(
    model: "torch.nn.Module", head: "torch.nn.Module", x: "torch.Tensor"
) -> "tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]":
    """What the model makes of ``x``, and each input and output of its head on the way."""
    import torch

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    try:
        with torch.no_grad():
            return model(x), seen
    finally:
        hook.remove()


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of each class, rows of ``(examples, classes)``; a row that is not finite spoils no other."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
