"""A session: a few private releases in a row, from a base to one delta."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fleet.errors import BudgetError, MissingExtraError
from fleet.privacy.release import Noise, private_sum
from fleet.task import Task, Windows, set_weights
from fleet.weights import Flat
from node.buffer import Buffer
from node.head import head_of, watched
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
        gradients = self._gradients.of(self._buffer.examples(partition))
        weights = base.astype(np.float64)
        for _ in range(releases):
            step = private_sum(
                gradients(weights.astype(np.float32)),
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
    """Gradients of the cross-entropy, one row an example, by Opacus' hooks.

    Where all that is trained is one layer on top, what lies under it gives the same values at every step of a
    session: it is computed once.
    """

    def __init__(self, task: Task) -> None:
        self._model = task.model()
        self._head = _only_head(self._model, task.signature.shape)
        self._wrapped = _wrap(self._head or self._model)

    def of(self, examples: Windows) -> Callable[[Flat], npt.NDArray[np.float64]]:
        """A function from weights to the gradients of these examples there, ``(examples, size)`` float64."""
        import torch

        x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
        inputs = watched(self._model, self._head, x)[1][0][0] if self._head else x

        def gradients(weights: Flat) -> npt.NDArray[np.float64]:
            set_weights(self._model, weights)
            self._wrapped.zero_grad(set_to_none=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs need no gradient
                loss = torch.nn.functional.cross_entropy(self._wrapped(inputs), y, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
            trained = [p for p in self._model.parameters() if p.requires_grad]
            rows: npt.NDArray[np.float64] = torch.cat([_rows(p) for p in trained], dim=1).numpy()
            return rows

        return gradients


def _rows(parameter: "torch.nn.Parameter") -> "torch.Tensor":
    samples: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]
    return samples.reshape(len(samples), -1).double()


def _only_head(model: "torch.nn.Module", shape: tuple[int, ...]) -> "torch.nn.Module | None":
    """The model's last layer, if no other module has weights to train."""
    trained = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    return head_of(model, shape) if len(trained) == 1 else None


def _wrap(model: "torch.nn.Module") -> "torch.nn.Module":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus warns about its own optional parts on import
            from opacus import GradSampleModule
    except ImportError as error:
        raise MissingExtraError("learning needs torch and opacus: pip install 'edgefleet[train]'") from error
    wrapped: torch.nn.Module = GradSampleModule(model, loss_reduction="sum")
    return wrapped
