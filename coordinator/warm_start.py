"""Release 0: the task's model fitted to its public donor, so that a node answers well from its first minute."""

import torch
from torch import Tensor, nn

from fleet.task import Task, divided, weights_of
from fleet.weights import Flat

STEPS = 300
BATCH = 64
LEARNING_RATE = 0.01
WEIGHT_DECAY = 1e-3  # the strongest that costs donors nothing: benchmarks/donor_tuning.py, which sees nobody else


def warm_start(task: Task, seed: int, weight_decay: float = WEIGHT_DECAY) -> Flat:
    """Weights ``(size,)`` float32 after training on the donor's windows, without privacy: they are public.

    Equal seeds give equal weights. Without a donor, or with an empty one, they are the model's first weights.
    """
    windows = task.donor() if task.donor else None
    with torch.random.fork_rng(devices=[]):  # what a model draws: its first weights, Dropout
        torch.manual_seed(seed)
        model = task.model().train()
        if windows is not None and len(windows) > 0:
            x = torch.from_numpy(task.signature.clipped(windows.x))
            y = torch.from_numpy(windows.y).long()
            _fit(model, x, y, torch.Generator().manual_seed(seed), weight_decay)
    return weights_of(model)


def _fit(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, weight_decay: float) -> None:
    front, rest = divided(model)
    with torch.no_grad():
        x = torch.cat([front(part.clone()) for part in torch.split(x, BATCH)])
    adam = _Adam([p for p in model.parameters() if p.requires_grad])
    for step in range(STEPS):
        batch = torch.randperm(len(y), generator=generator)[:BATCH]
        loss = torch.nn.functional.cross_entropy(rest(x[batch]), y[batch])
        loss = loss + weight_decay / 2 * sum((p * p).sum() for p in adam.parameters)
        adam.step(loss, LEARNING_RATE * (1 - step / STEPS))


class _Adam:
    """Adam (arXiv:1412.6980, algorithm 1). torch's own costs a second to import, for all of torch's compiler."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self._mean = [torch.zeros_like(p) for p in parameters]
        self._square = [torch.zeros_like(p) for p in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, loss: Tensor, learning_rate: float) -> None:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss, self.parameters)
        self._steps += 1
        for parameter, gradient, mean, square in zip(self.parameters, gradients, self._mean, self._square, strict=True):
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient * gradient, 0.001)
            unbiased = (square / (1 - 0.999**self._steps)).sqrt_().add_(1e-8)
            parameter.addcdiv_(mean, unbiased, value=-learning_rate / (1 - 0.9**self._steps))
