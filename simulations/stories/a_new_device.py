"""A new device: somebody joins late, and answers at once with what the fleet learned without them."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from coordinator.warm_start import warm_start
from fleet.settings import Settings
from fleet.task import Recording, Windows
from node.personal import personalise
from simulations.stories.story import Figure, Story, accuracy, count
from simulations.world import has_windows

if TYPE_CHECKING:
    from simulations.world import Device, World

ROUNDS = 10
LATEST_HOUR = 30
DOUBLINGS = (4, 8, 16, 32, 64)  # labelled windows after which a model of one's own is tried again


class ANewDevice(Story):
    """The last person of the fleet buys their devices when a trained release is served by all."""

    name = "a-new-device"
    title = "A new device"
    fixed = frozenset({"rounds"})

    def __init__(self) -> None:
        self._newcomers: set[str] = set()

    def settings(self, settings: Settings) -> Settings:
        """Ten rounds, and a first release after five of them."""
        return settings.changed(round={"rounds": ROUNDS}, release={"every_rounds": 5, "margin": 0.1})

    def recordings(self, fleet: dict[str, Recording]) -> dict[str, Recording]:
        """The fleet has never seen the last person's movements."""
        last = max(recording.person for recording in fleet.values())
        self._newcomers = {name for name, recording in fleet.items() if recording.person == last}
        return fleet

    def latecomers(self, fleet: list[str]) -> set[str]:
        """Whatever the last person wears."""
        return self._newcomers

    def before_hour(self, world: "World") -> None:
        """The day on which the devices are switched on."""
        served = world.coordinator.registry.releases.serving().number
        if served > 0 or world.progress.hour >= LATEST_HOUR:
            for name in sorted(self._newcomers - world.devices.keys()):
                world.join(name)

    def is_over(self, world: "World") -> bool:
        """When the newcomers have seen all their windows."""
        return all(name in world.devices and not has_windows(world.devices[name]) for name in self._newcomers)

    def tell(self, world: "World", held_out: dict[str, Recording]) -> tuple[list[str], dict[str, Figure]]:
        """The release that the newcomers began with, beside models fitted to their own windows alone."""
        devices = [world.devices[name] for name in sorted(self._newcomers)]
        first = max(device.agent.stages.history()[0][0] for device in devices)
        answered = sum(device.agent.shadow.next_seq() for device in devices)
        own = sum(len(device.recording.train) for device in devices) // len(devices)
        given, personal = _given(world, devices, first)
        alone: dict[int, float] = {}
        for windows in DOUBLINGS:
            if not alone or max(alone.values()) < given:
                alone[windows] = _own(world, devices, windows)
        caught_up = next((windows for windows, value in alone.items() if value >= given), None)
        alone[own] = _own(world, devices, own)
        figures: dict[str, Figure] = {
            "newcomers": len(devices),
            "joined_hour": devices[0].joined,
            "first_release": first,
            "windows_answered": answered,
            "fleet_accuracy": given,
            "own_accuracy_after_4_windows": alone[DOUBLINGS[0]],
            "own_catches_up_after_windows": caught_up,
            "own_accuracy_after_all_windows": alone[own],
            "all_windows": own,
            "personalised_accuracy": personal,
        }
        told = [
            f"{devices[0].recording.person} switched on {count(len(devices), 'device')} in hour {devices[0].joined}, "
            f"which answered from their first window on, with release {first}, and all {answered} windows after it.",
            f"The fleet, which had never seen this person, gave them a model that is right on {given:.0%} of these; "
            f"with a head of their own it is right on {personal:.0%}.",
            f"A model of their own alone is right on {alone[DOUBLINGS[0]]:.0%} after {DOUBLINGS[0]} labelled windows, "
            f"{_catches_up(caught_up)}, and is right on {alone[own]:.0%} after all {own} that each had.",
        ]
        return told, figures


def _given(world: "World", devices: "list[Device]", release: int) -> tuple[float, float]:
    """Accuracy of a release on the devices' live windows, as it came and with each device's own head."""
    registry = world.coordinator.registry
    weights = world.coordinator.bases.master(world.coordinator.bases[registry.releases.all()[release][0].base])
    live = Windows.joined([device.recording.live for device in devices])
    right = 0.0
    for device in devices:
        own = personalise(world.task, weights, device.recording.train)
        right += accuracy(world.task, own, device.recording.live) * len(device.recording.live)
    return accuracy(world.task, weights, live), right / len(live)


def _catches_up(windows: int | None) -> str:
    return f"catches up by the {windows}th" if windows else "never catches up"


def _own(world: "World", devices: "list[Device]", windows: int) -> float:
    """Accuracy on its live windows of what each device fits to its first ``windows`` alone, without any fleet."""
    right = seen = 0.0
    for device in devices:
        train, live = device.recording.train, device.recording.live
        alone = replace(world.task, donor=partial(Windows, train.x[:windows], train.y[:windows]))
        right += accuracy(world.task, warm_start(alone, seed=0), live) * len(live)
        seen += len(live)
    return right / seen
