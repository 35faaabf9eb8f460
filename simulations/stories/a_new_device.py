"""A new device: somebody joins late, and answers at once with what the fleet learned without them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from coordinator.warm_start import warm_start
from fleet.settings import Settings
from fleet.task import Recording, Windows
from fleet.weights import Flat
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
        live = Windows.joined([device.recording.live for device in devices])
        given, untrained = (accuracy(world.task, _released(world, release), live) for release in (first, 0))
        personal = _personalised(world, devices, _released(world, first))
        alone = learned_alone(partial(_own, world, devices), own, given)
        caught_up = next((windows for windows, value in alone.items() if value >= given), None)
        figures: dict[str, Figure] = {
            "newcomers": len(devices),
            "joined_hour": devices[0].joined,
            "first_release": first,
            "windows_answered": answered,
            "fleet_accuracy": given,
            "release_0_accuracy": untrained,
            "own_accuracy_after_4_windows": alone[DOUBLINGS[0]],
            "own_catches_up_after_windows": caught_up,
            "own_accuracy_after_all_windows": alone[own],
            "all_windows": own,
            "personalised_accuracy": personal,
        }
        told = [
            f"{devices[0].recording.person} switched on {count(len(devices), 'device')} in hour {devices[0].joined}, "
            f"which answered from their first window on, with release {first}, and all {answered} windows after it.",
            began_with(first, given, untrained, personal),
            f"A model of their own alone is right on {alone[DOUBLINGS[0]]:.0%} after {DOUBLINGS[0]} labelled windows, "
            f"{_catches_up(caught_up)}, and is right on {alone[own]:.0%} after all {own} that each had.",
        ]
        return told, figures


def learned_alone(accuracy_after: Callable[[int], float], own: int, given: float) -> dict[int, float]:
    """How right a model of one's own is after ever more windows, until it is as right as ``given``, and after all."""
    alone: dict[int, float] = {}
    for windows in DOUBLINGS:
        if not alone or (windows < own and max(alone.values()) < given):
            alone[windows] = accuracy_after(windows)
    alone[own] = accuracy_after(own)
    return alone


def began_with(release: int, given: float, untrained: float, personal: float) -> str:
    """How right the newcomers' first release is on their windows, beside release 0, which no device has trained."""
    if release == 0:
        return (
            f"No trained release was served by all when they came, so the fleet's training gave them nothing yet: "
            f"release 0, made from public data alone, is right on {given:.0%} of these; with a head of their own it is "
            f"right on {personal:.0%}."
        )
    return (
        f"The fleet, which had never seen this person, gave them a model that is right on {given:.0%} of these, where "
        f"release 0, made from public data alone, is right on {untrained:.0%}; with a head of their own the fleet's is "
        f"right on {personal:.0%}."
    )


def _released(world: "World", release: int) -> Flat:
    """The weights of a release."""
    bases, releases = world.coordinator.bases, world.coordinator.registry.releases
    return bases.master(bases[releases.all()[release][0].base])


def _personalised(world: "World", devices: "list[Device]", weights: Flat) -> float:
    """Accuracy on the devices' live windows, each with a head of its own."""
    right = seen = 0.0
    for device in devices:
        live = device.recording.live
        right += accuracy(world.task, personalise(world.task, weights, device.recording.train), live) * len(live)
        seen += len(live)
    return right / seen


def _catches_up(windows: int | None) -> str:
    return f"catches up after {windows}" if windows else "never catches up"


def _own(world: "World", devices: "list[Device]", windows: int) -> float:
    """Accuracy on its live windows of what each device fits to its first ``windows`` alone, without any fleet."""
    right = seen = 0.0
    for device in devices:
        train, live = device.recording.train, device.recording.live
        alone = replace(world.task, donor=partial(Windows, train.x[:windows], train.y[:windows]))
        right += accuracy(world.task, warm_start(alone, seed=0), live) * len(live)
        seen += len(live)
    return right / seen
