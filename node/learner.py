"""A session: a few private releases in a row, from a base to one delta."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fleet.errors import BudgetError, MissingExtraError
from fleet.privacy.release import Noise, private_sum
from fleet.task import Task, Windows, layout_of, set_weights
from fleet.weights import Flat
from node.buffer import Buffer
from node.ledger import Ledger

if TYPE_CHECKING:
    import torch


class Learner:
    """Turns labelled examples into private deltas, and nothing else into anything.

    The whole partition is the batch, so that no sampling has to stay secret and each release is exactly Gaussian.
    """

    def __init__(self, task: Task, ledger: Ledger, buffer: Buffer, noise: Noise, *, clipping_norm: float) -> None:
        self._gradients = PerExampleGradients(task)
        self._training = task.training
        self._ledger = ledger
        self._buffer = buffer
        self._noise = noise
        self._clipping_norm = clipping_norm

    def learn(self, base: Flat, *, releases: int, noise_multiplier: float) -> tuple[Flat, int] | None:
        """The delta of one session and the μ² units it was charged; None without examples.

        The charge is durable before the first noise is drawn: a crash in between loses budget, never privacy.

        Raises:
            BudgetError: No partition can pay for the session; nothing was released.
        """
        partitions = self._buffer.partitions()
        if not partitions:
            return None
        partition, mu2 = self._charge(partitions, releases, noise_multiplier)
        examples = self._buffer.examples(partition)
        weights = base.astype(np.float64)
        for _ in range(releases):
            step = private_sum(
                self._gradients(weights.astype(np.float32), examples),
                clipping_norm=self._clipping_norm,
                noise_multiplier=noise_multiplier,
                noise=self._noise,
            )
            weights -= self._training.learning_rate / self._training.examples * step
        return (weights - base).astype(np.float32), mu2

    def _charge(self, partitions: list[int], releases: int, noise_multiplier: float) -> tuple[int, int]:
        """Charge the newest partition that can pay; which one it is follows from counts alone, not from values."""
        refusal = BudgetError("no partition")
        for partition in reversed(partitions):
            try:
                mu2 = self._ledger.charge(
                    f"train/{partition}", noise_multiplier=noise_multiplier, releases=releases, purpose="session"
                )
            except BudgetError as error:
                refusal = error
            else:
                return partition, mu2
        raise refusal


class PerExampleGradients:
    """Gradients of the cross-entropy, one row an example, by Opacus' hooks."""

    def __init__(self, task: Task) -> None:
        self._model = task.model()
        self._layout = layout_of(self._model)
        self._wrapped = _wrap(self._model)

    def __call__(self, weights: Flat, examples: Windows) -> npt.NDArray[np.float64]:
        """``(examples, size)`` float64, at ``weights``."""
        import torch

        set_weights(self._model, weights)
        self._wrapped.zero_grad(set_to_none=True)
        logits = self._wrapped(torch.from_numpy(examples.x))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(examples.y), reduction="sum").backward()  # type: ignore[no-untyped-call]
        rows = [
            p.grad_sample.reshape(len(examples), -1).double() for p in self._model.parameters() if p.requires_grad
        ]
        gradients: npt.NDArray[np.float64] = torch.cat(rows, dim=1).numpy()
        return gradients


def _wrap(model: "torch.nn.Module") -> "torch.nn.Module":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus warns about its own optional parts on import
            from opacus import GradSampleModule
    except ImportError as error:
        raise MissingExtraError("learning needs torch and opacus: pip install 'edgefleet[train]'") from error
    wrapped: torch.nn.Module = GradSampleModule(model, loss_reduction="sum")
    return wrapped
