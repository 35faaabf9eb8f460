"""A session: a few private releases in a row, from a base to one delta."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fleet.errors import BudgetError, FleetError, MissingExtraError, StoreError, TaskError
from fleet.finding import said
from fleet.privacy.neighbours import MIXES, mixes
from fleet.privacy.release import Noise, private_sum
from fleet.task import Task, Windows, divided, draws, layout_of
from fleet.weights import Flat
from node.buffer import Buffer
from node.head import head_of, softmax, watched
from node.ledger import Ledger

if TYPE_CHECKING:
    import torch

Gradients = Callable[[Flat], npt.NDArray[np.float64]]


class Learner:
    """Turns labelled examples into private deltas, and nothing else into anything.

    The whole partition is the batch, so that no sampling has to stay secret and each release is exactly Gaussian.
    """

    def __init__(self, task: Task, ledger: Ledger, buffer: Buffer, noise: Noise, *, clipping_norm: float) -> None:
        self._task = task
        self._gradients = PerExampleGradients(task)
        self._kept: tuple[tuple[int, int], Gradients] | None = None
        self._tried = False
        self._ledger = ledger
        self._buffer = buffer
        self._noise = noise
        self._clipping_norm = clipping_norm

    def learn(self, base: Flat, *, releases: int, noise_multiplier: float) -> tuple[Flat, int] | None:
        """The delta of one session and the μ² units it was charged; None without examples.

        The charge is durable before the first noise is drawn: a crash in between loses budget, never privacy.

        Raises:
            BudgetError: No partition can pay for the session; nothing was released.
            TaskError: The base has not as many weights as the model, or the model fails on silence or mixes
                examples, and nothing was charged; or it fails on the examples, and the charge stays.
        """
        if len(base) != self._gradients.size:
            found = f"{self._gradients.size} weights here, and the base has {len(base)}"
            raise TaskError(f"{self._task.name}: the model has {found}: install the task's code that the fleet has")
        self._try_once(base)
        partitions = self._buffer.partitions()
        if not partitions:
            return None
        partition, mu2 = self._charge(partitions, releases, noise_multiplier)
        delta = session(
            self._gradients_of(partition),
            base,
            step_length=self._task.training.step_length(noise_multiplier),
            releases=releases,
            clipping_norm=self._clipping_norm,
            noise_multiplier=noise_multiplier,
            noise=self._noise,
        )
        return delta, mu2

    def _try_once(self, base: Flat) -> None:
        """A model that fails whatever it sees costs no charge at each round; one that mixes examples learns nothing.

        ``edgefleet check`` asks the same of the author; what a node promises does not rest on that.
        """

        def first(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
            rows = self._gradients.of(Windows(x, np.zeros(len(x), np.int64)))(base)
            one: npt.NDArray[np.float64] = rows[0]
            return one

        if not self._tried:
            first(np.zeros((2, *self._task.signature.shape), np.float32))
            if mixes(first, self._task.signature):
                raise TaskError(f"{self._task.name}: the model {MIXES}")
            self._tried = True

    def _gradients_of(self, partition: int) -> Gradients:
        """Those of this partition's examples and of no other's; kept for the next session until there is one more."""
        which = partition, self._buffer.count(partition)
        if self._kept is None or self._kept[0] != which:
            self._kept = which, self._gradients.of(self._buffer.examples(partition))
        return self._kept[1]

    def _charge(self, partitions: list[int], releases: int, noise_multiplier: float) -> tuple[int, int]:
        """Charge the newest full partition that can pay, or else the one being filled.

        One that has just begun would spend its budget on noise. Which it is follows from counts alone, not from values.
        """
        refusal = BudgetError("no partition")
        for partition in sorted(partitions, key=lambda number: (self._buffer.is_full(number), number), reverse=True):
            try:
                mu2 = self._ledger.charge(
                    f"train/{partition}", noise_multiplier=noise_multiplier, releases=releases, purpose="session"
                )
            except BudgetError as error:
                refusal = error
            else:
                return partition, mu2
        raise refusal


@contextmanager
def _authored(task: Task) -> Iterator[None]:
    """What a model raises as it is made or run is a ``TaskError``, and the node goes on answering."""
    try:
        yield
    except FleetError:
        raise
    except MemoryError as error:
        raise StoreError(f"{task.name}: no memory is left to learn with") from error
    except Exception as error:
        raise TaskError(f"{task.name}: the model fails in training: {said(error)}") from error


def session(
    gradients: Gradients,
    base: Flat,
    *,
    step_length: float,
    releases: int,
    clipping_norm: float,
    noise_multiplier: float,
    noise: Noise,
) -> Flat:
    """The delta of ``releases`` private steps from ``base``. Whoever calls it has charged them before."""
    weights = base.astype(np.float64)
    for _ in range(releases):
        weights -= step_length * private_sum(
            gradients(weights.astype(np.float32)),
            clipping_norm=clipping_norm,
            noise_multiplier=noise_multiplier,
            noise=noise,
        )
    return (weights - base).astype(np.float32)


class PerExampleGradients:
    """Gradients of the cross-entropy, one row an example, by Opacus' hooks.

    What lies under all that is trained gives the same values at every step: it is computed once. Where all that is
    trained is one layer on top, and no layer draws at random, its gradients are written down as they are known.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        with _authored(task):
            self._model = task.model().train()
            self._head = _only_head(self._model, task.signature.shape)
            self._front, self._rest = divided(self._model)
            if any(hasattr(parameter, "grad_sample") for parameter in self._rest.parameters()):
                raise TaskError(f"{task.name}: the model learns already: make a new one whenever it is asked for")
            self._wrapped = None if self._head else _wrap(self._rest)
        self.size = layout_of(self._model).size

    def of(self, examples: Windows) -> Gradients:
        """A function from weights to the gradients of these examples there, ``(examples, size)`` float64.

        Raises:
            TaskError: The model fails on them, here or in the function.
        """
        with _authored(self._task):
            gradients = self._of(examples)

        def guarded(weights: Flat) -> npt.NDArray[np.float64]:
            with _authored(self._task):
                return gradients(weights)

        return guarded

    def _of(self, examples: Windows) -> Gradients:
        import torch

        x, y = torch.from_numpy(self._task.signature.clipped(examples.x)), torch.from_numpy(examples.y)
        if self._head:
            inputs = watched(self._model, self._head, x)[1][0][0].double().numpy()
            return _of_head(inputs, examples.y, self._head.out_features, bias=self._head.bias is not None)
        with torch.no_grad():
            x = self._front(x)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        sizes = [p.numel() for p in trained]

        def gradients(weights: Flat) -> npt.NDArray[np.float64]:
            with torch.no_grad():
                parts = torch.tensor(weights).split(sizes)  # type: ignore[no-untyped-call]
                for parameter, values in zip(trained, parts, strict=True):
                    parameter.copy_(values.view_as(parameter))
                    parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs need no gradient
                self._pass(x.clone(), y)
            rows: npt.NDArray[np.float64] = torch.cat([_rows(p) for p in trained], dim=1).numpy()
            return rows

        return gradients

    def _pass(self, x: "torch.Tensor", y: "torch.Tensor") -> None:
        import torch

        assert self._wrapped is not None  # noqa: S101 - a model is wrapped, or has a head of its own
        try:
            loss = torch.nn.functional.cross_entropy(self._wrapped(x), y, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        except BaseException:  # Opacus would go on with what a pass that was broken off left in its layers
            self._wrapped.to_standard_module()  # type: ignore[operator]
            for module in self._rest.modules():
                for left in ("activations", "max_batch_len"):
                    vars(module).pop(left, None)
            self._wrapped = _wrap(self._rest)
            raise


def _of_head(inputs: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], classes: int, *, bias: bool) -> Gradients:
    """Of a linear layer on ``inputs``, ``(examples, d)``: its weight's ``classes * d`` columns, then its bias's."""
    truth = np.eye(classes)[labels]
    size = classes * inputs.shape[1]

    def gradients(weights: Flat) -> npt.NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):  # an example that is not finite is dropped later
            logits = inputs @ weights[:size].reshape(classes, -1).T.astype(np.float64)
            slope = softmax(logits + weights[size:] if bias else logits) - truth
            rows = (slope[:, :, None] * inputs[:, None, :]).reshape(len(inputs), -1)
        return np.concatenate([rows, slope], axis=1) if bias else rows

    return gradients


def _rows(parameter: "torch.nn.Parameter") -> "torch.Tensor":
    samples: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]
    return samples.reshape(len(samples), -1).double()


def _only_head(model: "torch.nn.Module", shape: tuple[int, ...]) -> "torch.nn.Linear | None":
    """The model's last layer, if nothing but its weight and its bias is trained and nothing is drawn on the way."""
    if draws(model):
        return None
    head = head_of(model, shape)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return head if head is not None and trained == {id(p) for p in head.parameters()} else None


def _wrap(model: "torch.nn.Module") -> "torch.nn.Module":
    try:
        from fleet.privacy.per_example import GradSampleModule
    except ImportError as error:
        raise MissingExtraError("learning needs torch and opacus: pip install 'edgefleet[train]'") from error
    wrapped: torch.nn.Module = GradSampleModule(model, loss_reduction="sum")
    return wrapped
