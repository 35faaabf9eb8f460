"""What would not work about a model: its outputs, and a gradient for each example of its own."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fleet.finding import Finding, failure, said
from fleet.privacy.neighbours import MIXES, mixes
from fleet.task import Signature, Task

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3  # of the largest gradient; float32 sums in another order differ by about 1e-6


def check_model(task: Task) -> Iterator[Finding]:
    """What is wrong with the model: outputs that are none, layers that mix examples, gradients that are missing."""
    try:
        model, another = task.model(), task.model()
        yield from _outputs(task, model)
    except Exception as error:  # noqa: BLE001 - the author's code may raise anything
        yield failure("model", f"fails on a batch of 3: {said(error)}")
        return
    if shared := _shared(model, another):
        yield failure(
            "model", f"is not made anew whenever it is asked for: parameter {shared} is that of the one before"
        )
    else:
        yield from _learning(task, model)


def _shared(model: "torch.nn.Module", another: "torch.nn.Module") -> str | None:
    """The first parameter to train that is one and the same in both; None if each has its own."""
    trained = {id(parameter) for parameter in another.parameters() if parameter.requires_grad}
    return next((name for name, parameter in model.named_parameters() if id(parameter) in trained), None)


def _mixing_layers(model: "torch.nn.Module") -> Iterator[Finding]:
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            yield failure(
                f"layer {name or kind}", f"{kind} keeps statistics of private data: track_running_stats=False"
            )
        elif isinstance(layer, _BatchNorm):
            yield failure(f"layer {name or kind}", f"{kind} mixes the examples of a batch: use LayerNorm or none")


def _outputs(task: Task, model: "torch.nn.Module") -> Iterator[Finding]:
    """Three batches: silence, the lowest and the highest reading."""
    import torch

    model.eval()
    classes = len(task.signature.classes)
    for value in (0.0, task.signature.low, task.signature.high):
        with torch.no_grad():
            logits = model(torch.full((3, *task.signature.shape), value))
        if tuple(logits.shape) != (3, classes):
            found = f"has shape {tuple(logits.shape)} for a batch of 3"
            yield failure("output", f"{found}; {classes} classes need (3, {classes})")
            return
        if not logits.isfinite().all():
            yield failure("output", f"is NaN or infinite when every input value is {value:g}")


def _learning(task: Task, model: "torch.nn.Module") -> Iterator[Finding]:
    """Each example must have a gradient of its own: what privacy clips, one by one."""
    if not any(p.requires_grad for p in model.parameters()):
        yield failure("model", "has no parameter to train")
        return
    refused = list(_mixing_layers(model)) or list(_refused_layers(model))
    yield from refused
    if refused:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from _gradients(task, model)
    except Exception as error:  # noqa: BLE001 - a layer that Opacus cannot handle may raise anything
        yield failure("model", f"has no gradient per example: {said(error)}")


def _refused_layers(model: "torch.nn.Module") -> Iterator[Finding]:
    """One line for each layer that Opacus would refuse, in place of its page of reasons."""
    from fleet.privacy.per_example import GradSampleModule, ModuleValidator, trainable_modules

    for name, layer in trainable_modules(model):
        kind = type(layer).__name__
        subject = f"layer {name or kind}"
        validator = ModuleValidator.VALIDATORS.get(type(layer))
        if validator and validator(layer):
            yield failure(subject, f"{kind} has no gradient per example: {_hint(kind)}")
        elif any(True for _ in layer.buffers()) and GradSampleModule.validate(layer):
            yield failure(subject, f"{kind} trains and keeps buffers: move its buffers to a layer without parameters")


def _hint(kind: str) -> str:
    over_time = {"LSTM", "GRU", "RNN", "MultiheadAttention"}  # what Opacus has for them, the quantizer refuses
    return "use Conv1d over the series" if kind in over_time else "use another layer"


def _gradients(task: Task, model: "torch.nn.Module") -> Iterator[Finding]:
    """The gradient of an example must be right, and must not change with its neighbour in the batch."""

    def first(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.concatenate([sample[0].numpy().ravel() for sample in _per_example(model, x).values()])

    silence = np.zeros((2, *task.signature.shape), np.float32)
    missing = [name for name, samples in _per_example(model, silence).items() if samples is None]
    if missing:
        yield failure(f"parameter {missing[0]}", "gets no gradient per example: is it used in forward?")
    elif mixes(first, task.signature):
        yield failure("model", MIXES)
    elif wrong := _wrong(model, silence) or _wrong(model, _random(task.signature)):
        hint = "only padding_mode='zeros' and no padding_idx, or another layer"
        yield failure(f"parameter {wrong}", f"its gradients per example do not add up to that of the batch: {hint}")


def _random(signature: Signature) -> npt.NDArray[np.float32]:
    shape = (8, *signature.shape)
    return np.random.default_rng(0).uniform(signature.low, signature.high, shape).astype(np.float32)


def _wrong(model: "torch.nn.Module", x: npt.NDArray[np.float32]) -> str | None:
    """The parameter whose gradients of each example of ``x`` are furthest from adding up to autograd's; None if all do.

    What they are off by is compared with the largest gradient of all: that of a bias under a norm is rounding alone.
    """
    found = _per_example(model, x)
    summed = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    off = {name: _size(found[name].sum(0) - whole) for name, whole in summed.items()}
    largest = max(_size(samples) for samples in found.values())
    furthest = max(off, key=lambda name: off[name])
    return furthest if off[furthest] > TOLERANCE * largest else None


def _size(values: "torch.Tensor") -> float:
    return float(np.abs(values.numpy()).max(initial=0.0))


def _per_example(model: "torch.nn.Module", x: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The gradients of each example of ``x`` by parameter; autograd's own, of all of them, is left in ``grad``."""
    import torch

    from fleet.privacy.per_example import GradSampleModule

    model.zero_grad()
    wrapped = GradSampleModule(model.train(), loss_reduction="sum")
    try:
        with torch.random.fork_rng(devices=[]):
            logits = wrapped(torch.from_numpy(x))
        truth = torch.arange(len(x)) % logits.shape[1]
        torch.nn.functional.cross_entropy(logits, truth, reduction="sum").backward()  # type: ignore[no-untyped-call]
        return {name: getattr(p, "grad_sample", None) for name, p in model.named_parameters() if p.requires_grad}
    finally:
        wrapped.to_standard_module()
