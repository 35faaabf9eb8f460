"""A personal head: the fleet's model, its last layer fitted to what this one device saw."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fleet.errors import TaskError
from fleet.task import Task, Windows, layout_of, set_weights
from fleet.weights import Flat
from node.head import head_of, softmax, watched

if TYPE_CHECKING:
    import torch

STEPS = 500  # more gained nothing on donors, going from one wrist to the other


def personalise(task: Task, weights: Flat, examples: Windows) -> Flat:
    """``weights`` with the last linear layer fitted to ``examples``; every other weight stays as it is.

    Personal weights never leave the node, so they cost no privacy budget. They are the same whenever the arguments
    are: ``STEPS`` full-batch gradient steps on the mean cross-entropy, each as long as is safe for these examples.
    Weights are float32 ``(size,)``; without examples they come back unchanged.

    Raises:
        TaskError: The model does not end in a linear layer that is trained.
    """
    if len(examples) == 0:
        return weights.copy()
    model = task.model()
    set_weights(model, weights)
    head = head_of(model, task.signature.shape)
    if head is None:
        raise TaskError(f"{task.name}: the model does not end in a linear layer that is trained; give it one to fit")
    own = weights.copy()
    named = layout_of(model).unflatten(own)  # views: what is written to them is written to ``own``
    trained = {name: parameter for name, parameter in model.named_parameters() if name in named}
    views: dict[torch.Tensor, Flat] = {parameter: named[name] for name, parameter in trained.items()}
    weight, bias = views[head.weight], None if head.bias is None else views[head.bias]
    fitted = _fit(_inputs(model, head, task.signature.clipped(examples.x)), examples.y, weight, bias)
    weight[:] = fitted[:, : weight.shape[1]]
    if bias is not None:
        bias[:] = fitted[:, -1]
    return own


def _inputs(model: "torch.nn.Module", head: "torch.nn.Module", x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What the head sees of each example of ``x``, ``(examples, inputs)``."""
    import torch

    seen = watched(model, head, torch.from_numpy(x))[1]
    inputs: npt.NDArray[np.float64] = seen[0][0].double().numpy()
    return inputs


def _fit(inputs: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], weight: Flat, bias: Flat | None) -> Any:
    """The head after its steps, float64 ``(classes, inputs)``, with the bias as one more column if there is one."""
    if bias is None:
        head = weight.astype(np.float64)
    else:
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
        head = np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)
    truth = np.eye(len(head))[labels]
    # The slope of the mean cross-entropy changes by at most half the mean squared input, whatever the direction.
    step = 2 / max(float((inputs * inputs).sum(1).mean()), 1e-12)
    for _ in range(STEPS):
        head -= step * (softmax(inputs @ head.T) - truth).T @ inputs / len(inputs)
    return head
