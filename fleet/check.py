"""What would not work about a task and its settings, found and explained before anything runs."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fleet.enrolment import check_name
from fleet.errors import BudgetError, FleetError, InputError, TaskError, UsageError
from fleet.evidence import ROLLBACK_EVIDENCE, fewest_harmed
from fleet.overlaps import most_windows, on_two_devices
from fleet.settings import Settings
from fleet.task import Recording, Task, Windows, weights_of
from fleet.weights import Flat

if TYPE_CHECKING:
    import torch

Level = Literal["error", "warning"]
Register = Callable[[Task, Flat], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know before running: an ``error`` stops the work, a ``warning`` has a price."""

    level: Level
    subject: str
    message: str


def check(task: Task, settings: Settings, register: Register) -> list[Finding]:
    """Everything that is wrong with the task, its model, its data and the settings; empty if nothing is.

    ``register`` exports and quantizes the task as the coordinator will, and returns its warnings; it raises
    ``TaskError`` for what it refuses, and is not asked when the model already failed.
    """
    model = list(_model(task))
    if not any(finding.level == "error" for finding in model):
        model += _registration(task, register)
    return [*model, *check_run(task, settings)]


def check_run(task: Task, settings: Settings) -> list[Finding]:
    """All of that but the model: what is left to check where the model is known to work."""
    return [*check_data(task, settings), *_promise(task, settings)]


def _model(task: Task) -> Iterator[Finding]:
    try:
        model = task.model()
        yield from _outputs(task, model)
    except Exception as error:  # noqa: BLE001 - the author's code may raise anything
        yield _error("model", f"fails on a batch of 3: {_said(error)}")
        return
    yield from _learning(task, model)


def _mixing_layers(model: "torch.nn.Module") -> Iterator[Finding]:
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            yield _error(f"layer {name or kind}", f"{kind} keeps statistics of private data: track_running_stats=False")
        elif isinstance(layer, _BatchNorm):
            yield _error(f"layer {name or kind}", f"{kind} mixes the examples of a batch: use GroupNorm or none")


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
            yield _error("output", f"{found}; {classes} classes need (3, {classes})")
            return
        if not logits.isfinite().all():
            yield _error("output", f"is NaN or infinite when every input value is {value:g}")


def _learning(task: Task, model: "torch.nn.Module") -> Iterator[Finding]:
    """Each example must have a gradient of its own: what privacy clips, one by one."""
    if not any(p.requires_grad for p in model.parameters()):
        yield _error("model", "has no parameter to train")
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
        yield _error("model", f"has no gradient per example: {_said(error)}")


def _refused_layers(model: "torch.nn.Module") -> Iterator[Finding]:
    """One line for each layer that Opacus would refuse, in place of its page of reasons."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule
        from opacus.utils.module_utils import trainable_modules
        from opacus.validators import ModuleValidator

    for name, layer in trainable_modules(model):
        kind = type(layer).__name__
        subject = f"layer {name or kind}"
        validator = ModuleValidator.VALIDATORS.get(type(layer))
        if validator and validator(layer):
            yield _error(subject, f"{kind} has no gradient per example: {_hint(kind)}")
        elif any(True for _ in layer.buffers()) and GradSampleModule.validate(layer):
            yield _error(subject, f"{kind} trains and keeps buffers: move its buffers to a layer without parameters")


def _hint(kind: str) -> str:
    replaced = {"LSTM", "GRU", "RNN", "MultiheadAttention"}
    return f"use opacus.layers.DP{kind}" if kind in replaced else "use another layer"


def _gradients(task: Task, model: "torch.nn.Module") -> Iterator[Finding]:
    """The gradient of an example must not change with its neighbour in the batch."""
    import torch

    generator = torch.Generator().manual_seed(0)
    low, high = task.signature.low, task.signature.high
    x = low + (high - low) * torch.rand((3, *task.signature.shape), generator=generator)
    alone, other = (_first_gradient(model, x[rows]) for rows in ([0, 1], [0, 2]))
    missing = [name for name, gradient in alone.items() if gradient is None]
    if missing:
        yield _error(f"parameter {missing[0]}", "gets no gradient per example: is it used in forward?")
    elif not all(torch.allclose(alone[name], other[name], rtol=1e-3, atol=1e-5) for name in alone):
        yield _error("model", "mixes the examples of a batch: one changes the gradient of another")


def _first_gradient(model: "torch.nn.Module", x: "torch.Tensor") -> dict[str, Any]:
    """The gradient of the first example of ``x`` by parameter, while the same dice fall every time."""
    import torch
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model.train(), loss_reduction="sum")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = torch.nn.functional.cross_entropy(wrapped(x), torch.zeros(len(x)).long(), reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        samples = {name: getattr(p, "grad_sample", None) for name, p in model.named_parameters() if p.requires_grad}
        return {name: None if sample is None else sample[0].clone() for name, sample in samples.items()}
    finally:
        wrapped.to_standard_module()


def _registration(task: Task, register: Register) -> Iterator[Finding]:
    try:
        for message in register(task, weights_of(task.model())):
            yield Finding("warning", "quantizer", message)
    except TaskError as error:
        yield _error("quantizer", str(error))


def check_data(task: Task, settings: Settings) -> Iterator[Finding]:
    """What is wrong with the data: what a window must be, labels, overlaps that the unit does not declare."""
    if task.donor:
        yield from _loaded("donor", task.donor, lambda public: _donor(task, public))
    yield from _loaded("devices", task.devices, lambda recordings: _recordings(task, settings, recordings))


def _loaded(
    subject: str, load: Callable[[], object], findings: Callable[[Any], Iterator[Finding]]
) -> Iterator[Finding]:
    """What there is to say of the data that the author's code loads, or of its failing."""
    try:
        loaded = load()
    except FleetError as error:
        yield _error(subject, str(error))
    except Exception as error:  # noqa: BLE001 - the author's code may raise anything
        yield _error(subject, f"fails: {_said(error)}")
    else:
        yield from findings(loaded)


def _donor(task: Task, public: Any) -> Iterator[Finding]:
    problem = _no_windows(public) or _problem(task, public)
    if problem:
        yield _error("donor", problem)


def _recordings(task: Task, settings: Settings, recordings: dict[str, Recording]) -> Iterator[Finding]:
    wrong = list(_misshapen(recordings))
    yield from wrong
    if wrong:
        return
    if len(recordings) < settings.round.min_updates:
        found = f"{len(recordings)} devices, but a round needs round.min_updates = {settings.round.min_updates}"
        yield Finding("warning", "devices", f"{found}: a simulation makes do with half of them, a fleet waits for more")
    wrong = [finding for name, recording in recordings.items() for finding in _recording(task, name, recording)]
    yield from wrong
    if not wrong:
        yield from _undeclared_overlap(task, recordings)
        yield from _one_window_on_two_devices(recordings)
        yield from _short_streams(settings, recordings)


def _misshapen(recordings: object) -> Iterator[Finding]:
    """Whatever is not a dict of recordings by the names of nodes."""
    if not isinstance(recordings, dict):
        yield _error("devices", f"returns {_kind(recordings)}, not a dict of Recording by device name")
        return
    for name, recording in recordings.items():
        try:
            check_name(name if isinstance(name, str) else "")
        except UsageError as error:
            yield _error("devices", str(error))
        if not isinstance(recording, Recording):
            yield _error(f"device {name!r:.80}", f"is {_kind(recording)}, not a Recording")
            continue
        for part, windows in (("train", recording.train), ("live", recording.live)):
            problem = _no_windows(windows)
            if problem:
                yield _error(f"device {name}, {part}", problem)


def _no_windows(value: Any) -> str | None:
    """Why it is no ``Windows`` of arrays, in words; None if it is."""
    if not isinstance(value, Windows):
        return f"is {_kind(value)}, not Windows"
    if not all(isinstance(array, np.ndarray) for array in (value.x, value.y)):
        return "x and y must be numpy arrays"
    return None


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _short_streams(settings: Settings, recordings: dict[str, Recording]) -> Iterator[Finding]:
    """Windows are used once: a stream that is over before the shadow's quota never says anything of a release."""
    quota, longest = settings.release.shadow_windows, max((len(seen.live) for seen in recordings.values()), default=0)
    if quota > longest:
        found = f"{quota}, but no device has more than {longest} live windows"
        yield Finding("warning", "release.shadow_windows", f"{found}: a simulation of them promotes nothing")


def _recording(task: Task, name: str, recording: Recording) -> Iterator[Finding]:
    for part, windows in (("train", recording.train), ("live", recording.live)):
        subject = f"device {name}, {part}"
        problem = _problem(task, windows)
        if problem:
            yield _error(subject, problem)
        elif len(windows) == 0 and part == "train":
            yield Finding("warning", subject, "has no windows: the device can only answer")


def _problem(task: Task, windows: Windows) -> str | None:
    """The first thing wrong with the windows, in words."""
    if windows.y.dtype.kind not in "iu":
        return f"labels are {windows.y.dtype}, not whole numbers"
    if windows.y.ndim != 1:
        return f"labels have shape {windows.y.shape}, not one number a window"
    if windows.x.shape[1:] != task.signature.shape:
        return f"windows have shape {windows.x.shape[1:]}, the task takes {task.signature.shape}"
    for index, (x, label) in enumerate(zip(windows.x, windows.y, strict=True)):
        try:
            task.signature.check(x)
            task.signature.check_label(int(label))
        except InputError as error:
            return f"window {index}: {error}"
    return None


def _undeclared_overlap(task: Task, recordings: dict[str, Recording]) -> Iterator[Finding]:
    """The promise is about one window; a stretch of data that lies in several needs their number declared."""
    found = {name: most_windows(_together(seen)) for name, seen in recordings.items()}
    name = max(found, key=lambda device: found[device], default="")
    if name and found[name] > task.unit.group:
        yield _error(
            f"device {name}",
            f"the same stretch of data lies in {found[name]} windows: cut windows that do not overlap, "
            f"or declare PrivacyUnit({task.unit.name!r}, group={found[name]})",
        )


def _one_window_on_two_devices(recordings: dict[str, Recording]) -> Iterator[Finding]:
    """What a window costs stands in the ledger of its device, and no ledger knows of another."""
    found = on_two_devices({name: _together(seen) for name, seen in recordings.items()})
    if found:
        first, second = found
        yield _error(f"device {second}", f"holds a window of device {first} too: give each window to one device")


def _together(recording: Recording) -> npt.NDArray[np.float32]:
    return np.concatenate([part.x for part in (recording.train, recording.live) if len(part)] or [recording.train.x])


def _promise(task: Task, settings: Settings) -> Iterator[Finding]:
    privacy = settings.privacy
    if not np.isfinite(privacy.epsilon):
        yield Finding("warning", "privacy.epsilon", "is infinite: no noise, and nothing is promised to anyone")
    elif privacy.delta * task.training.examples >= 1:
        yield _error(
            "privacy.delta",
            f"{privacy.delta:g} promises nothing: it lets one in {task.training.examples} examples be published",
        )
    elif privacy.delta * task.training.examples >= 0.1:
        yield Finding(
            "warning",
            "privacy.delta",
            f"{privacy.delta:g} is too near one in {task.training.examples} examples to promise much",
        )
    yield from _noise(task, settings)
    if unused := privacy.planned_releases % settings.round.rounds:
        yield Finding(
            "warning",
            "privacy.planned_releases",
            f"{privacy.planned_releases} do not divide into {settings.round.rounds} rounds: {unused} stay unused",
        )

    yield from _probation(settings)


def _probation(settings: Settings) -> Iterator[Finding]:
    needed = fewest_harmed(ROLLBACK_EVIDENCE)
    if settings.release.probation_windows < needed:
        found = f"{settings.release.probation_windows}, and a node is sure of harm after {needed} at least"
        yield Finding("warning", "release.probation_windows", f"{found}: no node can go back by itself")


def _noise(task: Task, settings: Settings) -> Iterator[Finding]:
    privacy, examples = settings.privacy, task.training.examples
    budget = privacy.budget(task.unit.group)
    try:
        noise_multiplier = budget.noise_multiplier(privacy.planned_releases)
    except BudgetError as error:
        yield _error("privacy.epsilon", str(error))
        return
    if noise_multiplier > 10 * examples:
        found = f"{privacy.epsilon:g} asks for noise ten times longer than what {examples} examples say together"
        yield Finding("warning", "privacy.epsilon", f"{found}: nothing will be learned")


def _error(subject: str, message: str) -> Finding:
    return Finding("error", subject, message)


def _said(error: Exception) -> str:
    """What a foreign error says, on one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
