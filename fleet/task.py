"""A task: what a model author writes down once, and everything else follows from."""

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fleet.errors import InputError, TaskError
from fleet.plain import dtype_name, make_plain, names, number, sizes, text
from fleet.weights import Flat, Layout

if TYPE_CHECKING:
    import torch

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class Signature:
    """What goes into the model and what comes out: one example, without the batch axis.

    Readings are clipped to ``low``..``high`` inside the graph; the bounds fix the quantizer's input range.
    """

    input: str
    shape: tuple[int, ...]
    low: float
    high: float
    classes: tuple[str, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        make_plain(self, input=text, shape=sizes, low=number, high=number, classes=names, dtype=dtype_name)
        if self.dtype != "float32":
            raise TaskError(f"signature: dtype {self.dtype} is not supported, use float32")
        most = float(np.finfo(np.float32).max)
        if not -most <= self.low < self.high <= most:
            raise TaskError(f"signature: low {self.low} must be below high {self.high}, and both finite float32")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise TaskError("signature: classes must be at least two different names")
        if not self.shape or min(self.shape) < 1:
            raise TaskError(f"signature: shape {self.shape} must have positive sizes, without the batch axis")

    def check(self, x: npt.NDArray[Any]) -> None:
        """Refuse anything but one finite example of the declared shape and dtype.

        Raises:
            InputError: Says which of them it is.
        """
        if x.shape != self.shape:
            raise InputError(f"{self.input}: shape {x.shape}, the task takes {self.shape}")
        if x.dtype != np.dtype(self.dtype):
            raise InputError(f"{self.input}: dtype {x.dtype}, the task takes {self.dtype}")
        if not np.isfinite(x).all():
            raise InputError(f"{self.input}: NaN or infinite values in the reading")

    def clipped(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Examples ``(n, *shape)`` as the graph sees them: what is learned from is what is answered."""
        return np.clip(x, self.low, self.high)

    def check_label(self, label: int) -> None:
        """Refuse a label that is not the index of a class.

        Raises:
            InputError: The label is out of range.
        """
        if not 0 <= label < len(self.classes):
            raise InputError(f"label {label}: the task has classes 0 to {len(self.classes) - 1}")


@dataclass(frozen=True, slots=True)
class PrivacyUnit:
    """Whose presence is hidden. ``group`` is how many windows one stretch of real data can appear in."""

    name: str
    group: int = 1

    def __post_init__(self) -> None:
        make_plain(self, name=text, group=index)
        if self.group < 1:
            raise TaskError(f"unit: group {self.group} must be 1 or more")


@dataclass(frozen=True, slots=True)
class Windows:
    """Labelled examples in order of arrival: ``x`` float32 ``(n, *shape)``, ``y`` int64 ``(n,)``."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise TaskError(f"{len(self.x)} windows but {len(self.y)} labels")
        for name, values in (("x", self.x), ("y", self.y)):
            if isinstance(values, np.ndarray):  # torch takes no x[::-1]; what is no array is for check to say
                object.__setattr__(self, name, np.ascontiguousarray(values))

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def joined(cls, parts: "Iterable[Windows]") -> "Windows":
        """All windows of several streams, one stream after the other."""
        listed = list(parts)
        return cls(np.concatenate([part.x for part in listed]), np.concatenate([part.y for part in listed]))


@dataclass(frozen=True, slots=True)
class Recording:
    """What one device saw: ``train`` came first and may be learned from, ``live`` comes later as a stream."""

    person: str
    train: Windows
    live: Windows


@dataclass(frozen=True, slots=True)
class Training:
    """How a node takes its local steps: ``w -= step_length(noise_multiplier) * (noisy clipped sum)``.

    ``examples`` is a public constant near the number of examples of a device; the true number stays private.
    ``noise_limit`` is the noise multiplier beyond which steps are shortened, so that the noise of one step never
    moves the weights further than at the limit; a smaller ε then learns slower, and is not drowned.
    """

    learning_rate: float
    examples: int
    noise_limit: float = 13.0

    def __post_init__(self) -> None:
        make_plain(self, learning_rate=number, examples=index, noise_limit=number)
        if not 0 < self.learning_rate < math.inf or self.examples < 1 or not self.noise_limit > 0:
            raise TaskError("training: learning_rate, examples and noise_limit must be positive, steps finite")

    def step_length(self, noise_multiplier: float) -> float:
        """What a noisy clipped sum is multiplied by. It follows from public numbers alone."""
        calm = min(1.0, self.noise_limit / noise_multiplier) if noise_multiplier else 1.0
        return self.learning_rate * calm / self.examples


@dataclass(frozen=True, slots=True)
class Task:
    """A model, what it takes and gives, the unit of privacy, and where a simulation finds data.

    Attributes:
        model: Makes the torch module; it sees ``(batch, *signature.shape)`` float32 and returns one logit a class.
            It computes each example on its own: no BatchNorm.
        devices: The recordings of the simulated devices by name; one person may wear several.
        donor: Public data that release 0 is fitted to; without it, release 0 is the model as it was made.
    """

    name: str
    model: "Callable[[], torch.nn.Module]"
    signature: Signature
    unit: PrivacyUnit
    training: Training
    devices: Callable[[], dict[str, Recording]] = field(compare=False)
    donor: Callable[[], Windows] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise TaskError(f"task name {self.name!r}: use letters, digits and underscores")

    def spec(self) -> dict[str, Any]:
        """All of it but the code and the data, as JSON: enough to answer with a release, not to learn."""
        return {"name": self.name} | {part: asdict(getattr(self, part)) for part in _SPEC}

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> "Task":
        """A task that can be answered for; its model and its data are not here.

        Raises:
            TaskError: ``spec`` is not what ``Task.spec`` gives.
        """
        try:
            parts = {name: kind(**_tuples(spec[name])) for name, kind in _SPEC.items()}
            return cls(name=spec["name"], model=_elsewhere, devices=_elsewhere, **parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise TaskError(f"task: {error} is missing or wrong") from error


_SPEC: dict[str, type[Any]] = {"signature": Signature, "unit": PrivacyUnit, "training": Training}


def _tuples(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in part.items()}


def _elsewhere() -> Any:
    raise TaskError("this process knows what the task takes and gives, not its code: it cannot learn")


def layout_of(model: "torch.nn.Module") -> Layout:
    """The layout of the parameters that training changes, in ``named_parameters`` order."""
    named = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    return Layout(tuple(name for name, _ in named), tuple(shape for _, shape in named))


def weights_of(model: "torch.nn.Module") -> Flat:
    """The parameters that training changes, as one flat vector."""
    parameters = {name: p.detach().numpy() for name, p in model.named_parameters() if p.requires_grad}
    return layout_of(model).flatten(parameters)


def set_weights(model: "torch.nn.Module", flat: Flat) -> None:
    """Write ``flat`` into the parameters that training changes."""
    import torch

    values = layout_of(model).unflatten(flat)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(values[name].copy()))


def divided(model: "torch.nn.Module") -> "tuple[torch.nn.Module, torch.nn.Module]":
    """The front, which training leaves as it is, and the rest: ``model(x) == rest(front(x))``, whatever the weights.

    Only of an ``nn.Sequential`` can that be told; the front of any other model is empty. Layers of torch that draw at
    random in training belong to the rest; one of the task's own is not known for it, and what it drew first is kept.
    """
    from torch import nn

    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        layers = list(model)
    else:
        layers = [model]
    first = next((i for i, layer in enumerate(layers) if _changes(layer)), 0)
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


def draws(model: "torch.nn.Module") -> bool:
    """Whether a layer of torch in it draws at random in training."""
    from torch.nn import RReLU
    from torch.nn.modules.dropout import _DropoutNd

    return any(isinstance(module, _DropoutNd | RReLU) for module in model.modules())


def _changes(layer: "torch.nn.Module") -> bool:
    return draws(layer) or any(parameter.requires_grad for parameter in layer.parameters())


def load(reference: str, folder: Path) -> Task:
    """The task that ``reference`` names: ``task.py:TASK``, relative to ``folder``, or ``package.module:TASK``.

    What its code prints meanwhile goes to standard error: standard output is for what a command has to say.

    Raises:
        TaskError: The file, the module or the name is not there, it fails, or it is no ``Task``.
    """
    place, _, name = reference.partition(":")
    with redirect_stdout(sys.stderr):
        module = _imported(place) if _MODULE.fullmatch(place) and not place.endswith(".py") else _file(folder / place)
    task = getattr(module, name or "TASK", None)
    if not isinstance(task, Task):
        raise TaskError(f"{place} has no Task named {name or 'TASK'}")
    return task


def _file(path: Path) -> object:
    if not path.is_file():
        raise TaskError(f"task file {path} is not there; write it or fix [task] file in fleet.toml")
    return _run(path)


def _imported(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the author's code may raise anything
        raise TaskError(f"task module {name} failed: {type(error).__name__}: {error}") from error


def _run(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"edgefleet_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the author's code may raise anything
        raise TaskError(f"{path} failed: {type(error).__name__}: {error}") from error
    return module
