"""Measures a world that is over: the fleet's bases in both precisions, devices on their own, and the ledgers.

Nothing here decides anything in a fleet: it looks at every device's labels, which only a simulation can do.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from coordinator.rounds import BaseRow
from coordinator.warm_start import warm_start
from fleet.artifact import logits, open_session
from fleet.errors import TaskError
from fleet.quantization import Template
from fleet.task import Recording, Task, Windows, set_weights, weights_of
from fleet.weights import Flat
from node.head import head_of, watched
from node.personal import personalise
from simulations.measurement import Judged, Lent, Measurements, Own, Row, Seen, Spent
from simulations.world import Device, World

LABELS = (0, 5, 20)  # labelled windows of a device; "all that it has" comes on top
BASES_IN_INT8 = 6  # at most: the artifact computes everything, also what is the same in every base
BASES_IN_FLOAT32 = 50
WHOLE_MODELS = 4  # devices that train a whole model alone, where it is more than a head: seconds each


def measure(world: World, held_out: Mapping[str, Recording]) -> Measurements:
    """Everything that the report shows and the run itself did not leave behind."""
    recordings = {name: device.recording for name, device in world.devices.items()} | dict(held_out)
    away = set(held_out)
    bench = _bench(world.task, recordings)
    rows: list[Row] = [_seen(name, seen, name in away, world.devices.get(name)) for name, seen in recordings.items()]
    rows += _judged(world, bench, recordings, away)
    rows += _on_their_own(world, bench, away)
    rows += [_spent(name, device) for name, device in world.devices.items()]
    return Measurements.of(rows)


@dataclass(frozen=True, slots=True)
class _Bench:
    """A task and recordings in the form that is cheapest to measure, with the same weights and the same answers."""

    task: Task
    first: Flat
    recordings: dict[str, Recording]
    only_head: bool

    def right(self, weights: Flat, windows: Windows) -> npt.NDArray[np.bool_]:
        """Which windows the float32 model names rightly, ``(n,)``."""
        model = self.task.model().eval()
        set_weights(model, weights)
        x = torch.from_numpy(self.task.signature.clipped(windows.x))
        with torch.no_grad():
            named: npt.NDArray[np.bool_] = model(x).argmax(1).numpy() == windows.y
        return named


def _bench(task: Task, recordings: dict[str, Recording]) -> _Bench:
    """Where only the last layer is trained, what goes into it is the same for all weights: it is computed once."""
    model = task.model().eval()
    first = weights_of(model)
    head = head_of(model, task.signature.shape)
    trained = {p for p in model.parameters() if p.requires_grad}
    if head is None or trained != set(head.parameters()):
        return _Bench(task, first, recordings, only_head=False)

    def inputs(windows: Windows) -> Windows:
        seen = watched(model, head, torch.from_numpy(task.signature.clipped(windows.x)))[1]
        return Windows(seen[0][0].numpy(), windows.y)

    small = torch.nn.Sequential(head)
    most = float(np.finfo(np.float32).max)  # what goes into a head has bounds of its own
    signature = replace(task.signature, shape=(head.in_features,), low=-most, high=most)
    return _Bench(
        replace(task, model=lambda: small, signature=signature),  # whoever asks for it sets its weights
        first,
        {name: Recording(seen.person, inputs(seen.train), inputs(seen.live)) for name, seen in recordings.items()},
        only_head=True,
    )


def _seen(name: str, recording: Recording, held_out: bool, device: Device | None) -> Seen:
    sent = device.agent.sent_bytes() if device else []
    answers = device.agent.shadow.next_seq() if device else 0
    return Seen(
        name, recording.person, held_out, len(recording.train), len(recording.live), answers, len(sent), sum(sent)
    )


def _judged(world: World, bench: _Bench, recordings: dict[str, Recording], away: set[str]) -> Iterator[Judged]:
    bases, template = world.coordinator.registry.rounds.bases(), _template(world)
    raw = {name: _judging(seen, name in away) for name, seen in recordings.items()}
    small = {name: _judging(seen, name in away) for name, seen in bench.recordings.items()}
    released = {release.base for release, _ in world.coordinator.registry.releases.all()}
    for base in _spread(bases, BASES_IN_FLOAT32, released):
        right = bench.right(world.coordinator.bases.master(base), Windows.joined(small.values()))
        yield Judged(base.number, "float32", _by_device(right, small))
    for base in _spread(bases, BASES_IN_INT8, released):
        session = open_session(template.artifact(template.quantize(world.coordinator.bases.master(base))))
        windows = Windows.joined(raw.values())
        yield Judged(base.number, "int8", _by_device(logits(session, windows.x).argmax(1) == windows.y, raw))


def _on_their_own(world: World, bench: _Bench, away: set[str]) -> Iterator[Own | Lent]:
    """Models that never leave their device: from nothing, and from the fleet's last base."""
    last, template = world.coordinator.bases.newest(), _template(world)
    fleet = template.dequantize(template.quantize(world.coordinator.bases.master(last)))  # as a node holds it
    strangers = Windows.joined(_judging(seen, True) for name, seen in bench.recordings.items() if name in away)
    least = min((len(seen.train) for seen in bench.recordings.values()), default=0)
    for index, (name, seen) in enumerate(bench.recordings.items()):
        for labels in [*(k for k in LABELS if k < least), len(seen.train)]:
            own = Windows(seen.train.x[:labels], seen.train.y[:labels])
            everything = labels == len(seen.train)
            cheap = bench.only_head or (everything and index < WHOLE_MODELS)
            alone = _alone(bench, own) if labels and cheap else None
            yield Own(
                name,
                labels,
                None if alone is None else int(bench.right(alone, seen.live).sum()),
                _personal(bench, fleet, own, seen.live),
            )
            if everything and alone is not None and name not in away:
                yield Lent(name, int(bench.right(alone, strangers).sum()))


def _alone(bench: _Bench, own: Windows) -> Flat:
    """What a device makes of its own windows: a head by the recipe of personal heads, more by that of release 0."""
    if bench.only_head:
        return personalise(bench.task, bench.first, own)
    return warm_start(replace(bench.task, donor=lambda: own), seed=0)


def _personal(bench: _Bench, fleet: Flat, own: Windows, live: Windows) -> int | None:
    try:
        return int(bench.right(personalise(bench.task, fleet, own), live).sum())
    except TaskError:  # the model does not end in a layer that could be personal
        return None


def _spent(name: str, device: Device) -> Spent:
    ledger = device.agent.ledger
    sums: dict[str, int] = {}
    sessions, reports = [], 0
    for partition, mu2 in ledger.charges():
        sums[partition] = sums.get(partition, 0) + mu2
        if partition.startswith("train/"):
            most = max(total for other, total in sums.items() if other.startswith("train/"))
            sessions.append(_finite(ledger.budget.spent_epsilon(most)))
        else:
            reports += 1
    dearest = max((total for partition, total in sums.items() if not partition.startswith("train/")), default=0)
    return Spent(name, sessions, reports, _finite(ledger.budget.spent_epsilon(dearest)))


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _template(world: World) -> Template:
    return Template.from_bytes((world.folder / "coordinator" / "template.bin").read_bytes())


def _judging(recording: Recording, held_out: bool) -> Windows:
    """The windows that judge a base: those that came after the training ones, or all of a device held out."""
    if not held_out:
        return recording.live
    return Windows.joined([recording.train, recording.live])


def _by_device(right: npt.NDArray[np.bool_], parts: Mapping[str, Windows]) -> dict[str, int]:
    ends = np.cumsum([len(windows) for windows in parts.values()])
    return {name: int(part.sum()) for name, part in zip(parts, np.split(right, ends[:-1]), strict=True)}


def _spread(bases: list[BaseRow], most: int, always: set[int]) -> list[BaseRow]:
    """About ``most`` bases, evenly spread, with the first, the last, and those of ``always``."""
    places = {round(i) for i in np.linspace(0, len(bases) - 1, min(most, len(bases)))}
    return [base for index, base in enumerate(bases) if index in places or base.number in always]
