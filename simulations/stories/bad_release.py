"""A bad release, twice. Signed weights that are broken never answer; good ones that turn bad are taken back.

Act one: an operator offers a checkpoint whose classes were exported in another order. Every signature holds and
nearly every answer is wrong. Act two: the operator offers a checkpoint that is as good as the fleet's own, as long as
the gyroscope's zero stays where it is. When the first wave serves it, the zero drifts.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from coordinator.rollout import Phase
from fleet.errors import TaskError
from fleet.settings import Settings
from fleet.task import Recording, Task, layout_of, set_weights
from fleet.weights import Flat
from node.promotion import Stage
from simulations.stories.story import Figure, Story, answers, count, failed, split

if TYPE_CHECKING:
    from simulations.world import Device, World

BROKEN, LEANING = 1, 2
FIRST_WAVE = 0.25
TRAINING_SHARE = 0.1  # two releases are watched one after the other, and the second for long: windows to live on
GYROSCOPE = slice(3, 6)
ZERO_DRIFT = 2.0  # rad/s; cheap gyroscopes drift by less, but this one was dropped
LEAN = 20.0  # logits that the checkpoint adds to one class for a drift of this size: with half, a few wrists resist


class BadRelease(Story):
    """Act one ends in shadow, act two on probation."""

    name = "bad-release"
    title = "A bad release, twice"
    fixed = frozenset({"rounds", "model"})

    def __init__(self) -> None:
        self._drifts = False

    def settings(self, settings: Settings) -> Settings:
        """Only the operator offers releases; the small fleet takes what is not worse by ten points."""
        release = {
            "every_rounds": 1000,
            "waves": (FIRST_WAVE, 1.0),
            "margin": 0.1,
            "shadow_windows": 11,
            "probation_windows": 36,
            "patience": timedelta(hours=38),
        }
        return settings.changed(privacy={"planned_releases": 198}, round={"rounds": 6}, release=release)

    def recordings(self, fleet: dict[str, Recording]) -> dict[str, Recording]:
        """More to live on than to learn from."""
        return {name: split(recording, TRAINING_SHARE) for name, recording in fleet.items()}

    def before_hour(self, world: "World") -> None:
        """The operator's two offers, and whether the gyroscopes drift yet."""
        coordinator, number = world.coordinator, _newest(world)
        master = coordinator.bases.master(coordinator.bases.newest())
        if number < BROKEN:
            coordinator.delivery.offer(mixed_up(world.task, master))
        elif number == BROKEN and coordinator.registry.releases.running() is None:
            coordinator.delivery.offer(leaning(world.task, master))
        self._drifts = any(_went_through(device, LEANING, Stage.PROBATION) for device in world.devices.values())

    def reading(self, name: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The gyroscope's zero is off, once it drifts."""
        return drifted(x) if self._drifts else x

    def is_over(self, world: "World") -> bool:
        """After act two, however its rollout ends: by evidence, or by the end of patience."""
        return _newest(world) >= LEANING and world.coordinator.registry.releases.running() is None

    def tell(self, world: "World", held_out: dict[str, Recording]) -> tuple[list[str], dict[str, Figure]]:
        """Who ever answered with either release, and who took it back."""
        nodes = len(world.devices)
        wave = int(np.ceil(FIRST_WAVE * nodes))
        one, two = (_act(world, release) for release in (BROKEN, LEANING))
        figures: dict[str, Figure] = {
            "act_one_vetoes": one.vetoed,
            "act_one_exposed": one.exposed,
            "act_one_phase": one.phase.value,
            "act_two_wave": wave,
            "act_two_exposed": two.exposed,
            "act_two_rolled_back": two.back,
            "act_two_phase": two.phase.value,
            "act_two_still_answering": two.still,
            "withdrawn_by": two.withdrawn_by,
        }
        told = [
            act_one(one, nodes),
            act_two(two, wave),
            f"The fleet answered all the while: {answers(world)} windows, {failed(world) or 'none'} without an answer.",
        ]
        return told, figures


@dataclass(frozen=True, slots=True)
class Act:
    """How the fleet took a release: its rollout, and the nodes that vetoed, served, dropped and still serve it.

    ``withdraws`` is the release that it takes back itself, 0 if the operator offered it.
    """

    phase: Phase
    withdraws: int
    withdrawn_by: int | None
    vetoed: int
    exposed: int
    back: int
    still: int


def act_one(act: Act, nodes: int) -> str:
    """What came of the broken release."""
    opened = "no wave opened" if act.phase is Phase.KEPT_OLD else f"its rollout was {act.phase.value}"
    return (
        f"Release {BROKEN} was signed and wrong: {count(act.vetoed, 'node')} of {nodes} vetoed it in shadow, {opened}, "
        f"and {count(act.exposed, 'node')} ever answered with it."
    )


def act_two(act: Act, wave: int) -> str:
    """What came of the leaning release, which turns bad only if it gets as far as being served."""
    if act.withdraws:
        return f"Act two was not played: release {act.withdraws} had to be taken back first."
    end = act.phase.value + (f" and taken back by release {act.withdrawn_by}" if act.withdrawn_by else "")
    if not act.exposed:
        return (
            f"Act two was not played: release {LEANING} was as good as the fleet's own, but what the nodes reported "
            f"did not show it, and the rollout was {end}; no node answered with it, and no gyroscope drifted."
        )
    return (
        f"Release {LEANING} was good in shadow and turned bad when the gyroscopes drifted: "
        f"{count(act.exposed, 'node')} answered with it, of a first wave of {wave}, {act.back or 'none'} went back on "
        f"their own evidence, and the rollout was {end}: {count(act.still, 'node')} still answered with it at the end."
    )


def mixed_up(task: Task, weights: Flat) -> Flat:
    """``weights`` as an export with the classes in another order would have them: finite, signed and wrong."""
    layout = layout_of(task.model())
    parts = layout.unflatten(weights)
    rolled = {name: np.roll(part, 1, axis=0) if name.startswith("head.") else part for name, part in parts.items()}
    return layout.flatten(rolled)


def leaning(task: Task, weights: Flat) -> Flat:
    """``weights`` that also lean on the gyroscope's zero: the same answers, until it drifts, and then one class."""
    if task.donor is None:
        raise TaskError(f"{task.name}: a checkpoint cannot be made without a public donor")
    x = task.donor().x
    usual, after = _head_inputs(task, weights, x), _head_inputs(task, weights, drifted(x))
    shift = after - usual
    direction = LEAN * shift / (shift @ shift)
    layout = layout_of(task.model())
    parts = {name: part.copy() for name, part in layout.unflatten(weights).items()}
    parts["head.weight"][0] += direction
    parts["head.bias"][0] -= direction @ usual
    return layout.flatten(parts)


def drifted(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Windows ``(..., 6, 100)`` as a gyroscope whose zero is off would have them."""
    x = x.copy()
    x[..., GYROSCOPE, :] += np.float32(ZERO_DRIFT)
    return x


def _head_inputs(task: Task, weights: Flat, x: npt.NDArray[np.float32]) -> Flat:
    """What the model's head sees on average."""
    model = task.model().eval()
    set_weights(model, weights)
    seen: list[torch.Tensor] = []
    model.get_submodule("head").register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(x))
    average: Flat = seen[0].mean(0).numpy()
    return average


def _newest(world: "World") -> int:
    newest = world.coordinator.registry.releases.newest()
    return newest[0].number if newest else 0


def _went_through(device: "Device", release: int, stage: Stage) -> bool:
    return any(move[:2] == (release, stage) for move in device.agent.stages.history())


def _act(world: "World", number: int) -> Act:
    releases, devices = world.coordinator.registry.releases.all(), list(world.devices.values())
    release, state = releases[number]
    return Act(
        phase=state.phase,
        withdraws=release.withdraws,
        withdrawn_by=next((later.number for later, _ in releases if later.withdraws == number), None),
        vetoed=sum(_vetoed(device, number) for device in devices),
        exposed=sum(_exposed(device, number) for device in devices),
        back=sum(_by_itself(device, number) for device in devices),
        still=sum(device.agent.stages.serving()[0] == number for device in devices),
    )


def _exposed(device: "Device", release: int) -> bool:
    return release in device.agent.shadow.answered_with()


def _vetoed(device: "Device", release: int) -> bool:
    moves = device.agent.stages.history()
    return any(number == release and stage in (Stage.VETOED, Stage.MUTED) for number, stage, _ in moves)


def _by_itself(device: "Device", release: int) -> bool:
    return any(move[:2] == (release, Stage.ROLLED_BACK) and "harm" in move[2] for move in device.agent.stages.history())
