"""What came of a run: the numbers that ``edgefleet simulate`` prints."""

import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.rollout import Phase
from fleet.artifact import logits, open_session
from fleet.errors import TrustError
from fleet.quantization import Template
from fleet.release import Release, release_path, template_path
from fleet.signing import sha256
from fleet.task import Recording, Windows
from node.floors import SqliteFloors
from node.installer import FolderFetcher, Installer
from node.promotion import Stage
from node.slots import Slots
from simulations.agreement import agreement
from simulations.world import Device, World

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Shares are of 1; times are wall seconds; docs in README name each field.

    Attributes:
        new_device_accuracy: Of the newest release that the whole fleet may serve, on people it never saw.
        same_device_accuracy: Of the same release, on the fleet's own later windows, none of which it trained on.
        float_agreement: Windows on which its int8 artifact and its float32 master name the same class.
        epsilon_max: The largest ε that any node's ledger holds; infinite without privacy.
        nodes_promoted: Nodes that end with a trained release answering, and not with one that was taken back.
        nodes_exposed: Nodes that answered with a release that was later rolled back or withdrawn.
        nodes_unsigned: Nodes that ever answered with a release that a fresh TUF client does not find signed, or
            that hold other bytes of one than those that it finds.
        bytes_up_per_update: Signed fields and delta of one update, on average.
        bytes_down_per_base: Weights, manifest and the metadata read in the same hour, on average over bases pulled.
        warnings: What ``edgefleet check`` has to say of the task, its data and the settings.
    """

    task: str
    seed: int
    new_device_accuracy: float
    same_device_accuracy: float
    float_agreement: float
    donor_accuracy: float
    epsilon_max: float | None
    delta: float
    unit: str
    rounds: int
    updates: int
    refused: int
    releases: int
    nodes: int
    nodes_promoted: int
    nodes_exposed: int
    nodes_unsigned: int
    answers: int
    bytes_up_per_update: float
    bytes_down_per_base: float
    first_promotion_s: float | None
    wall_s: float
    warnings: tuple[str, ...] = ()
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The documented object; infinite ε is null."""
        fields = asdict(self)
        if self.epsilon_max is not None and not np.isfinite(self.epsilon_max):
            fields["epsilon_max"] = None
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Result":
        """What ``to_json`` made an object of; infinite ε stays None."""
        return cls(**{**fields, "warnings": tuple(fields["warnings"])})


def result(world: World, held_out: dict[str, Recording], *, seed: int, warnings: tuple[str, ...] = ()) -> Result:
    """Measure a world that is over."""
    registry = world.coordinator.registry
    serving = registry.releases.open_to_all(len(world.settings.release.waves))
    artifacts = _artifacts(world)
    halted = _halted(world)
    trained = {release.number for release, _ in registry.releases.all() if release.base > 0} - halted
    away = Windows.joined([w for r in held_out.values() for w in (r.train, r.live)])
    live = Windows.joined([device.recording.live for device in world.devices.values()])
    devices = list(world.devices.values())
    return Result(
        task=world.task.name,
        seed=seed,
        new_device_accuracy=_accuracy(artifacts[serving.number], away),
        same_device_accuracy=_accuracy(artifacts[serving.number], live),
        float_agreement=_agreement(world, artifacts[serving.number], serving, [away, live]),
        donor_accuracy=_accuracy(artifacts[0], away),
        epsilon_max=max(device.agent.ledger.epsilon() for device in devices),
        delta=world.settings.privacy.delta,
        unit=world.task.unit.name,
        rounds=registry.rounds.closed(),
        updates=registry.rounds.counted(),
        refused=len(registry.rounds.refusals()),
        releases=registry.releases.all()[-1][0].number,
        nodes=len(devices),
        nodes_promoted=sum(_active(device) in trained for device in devices),
        nodes_exposed=len(_exposed(world, halted)),
        nodes_unsigned=sum(not _is_signed(device, artifacts) for device in devices),
        answers=sum(device.agent.shadow.next_seq() for device in devices),
        bytes_up_per_update=_mean([size for device in devices for size in device.agent.sent_bytes()]),
        bytes_down_per_base=_bytes_down(world),
        first_promotion_s=world.progress.first_promotion_s,
        wall_s=world.wall_s,
        warnings=warnings,
    )


def _artifacts(world: World) -> dict[int, bytes]:
    """Every release that a client born today finds signed, rebuilt from the shelf and checked."""
    found: dict[int, bytes] = {}
    with TemporaryDirectory() as folder:
        store = sqlite3.connect(":memory:", isolation_level=None)
        fetcher = FolderFetcher(world.repository.folder)
        floors = SqliteFloors(store)
        installer = Installer(Path(folder), world.repository.root_bytes(), fetcher, floors, clock=world.clock)
        installer.refresh()
        for release, _ in world.coordinator.registry.releases.all():
            found[release.number] = _artifact(installer, release.number)
        store.close()
    return found


def _artifact(installer: Installer, number: int) -> bytes:
    release = Release.from_bytes(_signed(installer, release_path(number, "manifest.json")))
    template = Template.from_bytes(_signed(installer, template_path(release.template)))
    artifact = template.artifact(_signed(installer, release_path(number, "weights.bin")))
    if sha256(artifact) != release.artifact:
        raise TrustError(f"release {number} is signed for another artifact")
    return artifact


def _signed(installer: Installer, path: str) -> bytes:
    data = installer.fetch(path)
    if data is None:
        raise TrustError(f"{path} is not signed")
    return data


def _labels(artifact: bytes, windows: Windows) -> npt.NDArray[np.int64]:
    labels: npt.NDArray[np.int64] = logits(open_session(artifact), windows.x).argmax(1)
    return labels


def _accuracy(artifact: bytes, windows: Windows) -> float:
    return float((_labels(artifact, windows) == windows.y).mean())


def _agreement(world: World, artifact: bytes, serving: Release, sets: list[Windows]) -> float:
    """int8 beside float32: the artifact, and the torch model with the master it was quantized from."""
    master = world.coordinator.bases.master(world.coordinator.bases[serving.base])
    return agreement(world.task, master, artifact, Windows.joined(sets).x)


def _active(device: Device) -> int:
    active, _ = device.agent.stages.serving()
    return active or 0


def _served(device: Device) -> set[int]:
    return device.agent.shadow.answered_with()


def _is_signed(device: Device, artifacts: dict[int, bytes]) -> bool:
    """Whether all that ever answered here was signed, and is, as far as the device still holds it, what was signed."""
    served, slots = _served(device), Slots(device.agent.folder / "slots")
    held = {number: slots.path(number) for number in served & device.agent.stages.kept()}
    whole = all(path.read_bytes() == artifacts.get(number) for number, path in held.items() if path.exists())
    return served <= artifacts.keys() and whole


def _halted(world: World) -> set[int]:
    """Releases that the coordinator took back."""
    releases = world.coordinator.registry.releases.all()
    return {release.number for release, state in releases if state.phase is Phase.HALTED}


def _exposed(world: World, halted: set[int]) -> set[str]:
    """Nodes that answered with what their own probation, or the coordinator, took back."""
    exposed = set()
    for name, device in world.devices.items():
        history = device.agent.stages.history()
        back = {release for release, stage, _ in history if stage is Stage.ROLLED_BACK}
        if _served(device) & (back | halted):
            exposed.add(name)
    return exposed


def _bytes_down(world: World) -> float:
    pulled = world.progress.bases_down
    return world.progress.bytes_down / pulled if pulled else 0.0


def _mean(values: list[int]) -> float:
    return float(np.mean(values)) if values else 0.0
