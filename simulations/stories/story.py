"""A story: a world outside that does something to a fleet, and what it tells of how the fleet took it."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from fleet.errors import UsageError
from fleet.events import read_events
from fleet.settings import Settings
from fleet.task import Recording, Task, Windows, set_weights
from fleet.weights import Flat
from simulations.script import Script

if TYPE_CHECKING:
    from simulations.scenario import Wish
    from simulations.world import World

Figure = int | float | str | None


@dataclass(frozen=True, slots=True)
class Tale:
    """What happened, in about three sentences, and the figures in them."""

    name: str
    title: str
    told: list[str]
    figures: dict[str, Figure]

    def to_json(self) -> dict[str, Any]:
        """The object that goes under ``story``, and into ``story.json``."""
        return asdict(self)


class Story(Script, ABC):
    """One file a story. It scripts what comes from outside; what comes of it is up to the fleet.

    Attributes:
        fixed: Flags that the story sets itself.
        fewest: The smallest fleet that it can be told of.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    fixed: ClassVar[frozenset[str]] = frozenset()
    fewest: ClassVar[int] = 4

    def check(self, wish: "Wish") -> None:
        """Refuse a wish that contradicts the story.

        Raises:
            UsageError: Says which flag, and why.
        """
        if wish.config:
            raise UsageError("--story plays the built-in task, but fleet.toml here names one; use another folder")
        given = {
            "rounds": wish.rounds,
            "epsilon": wish.epsilon,
            "model": None if wish.model == "features" else wish.model,
        }
        for flag in sorted(self.fixed):
            if given[flag] is not None:
                raise UsageError(f"--story {self.name} sets --{flag} itself; leave it out")
        if wish.nodes is not None and wish.nodes < self.fewest:
            raise UsageError(f"--nodes {wish.nodes}: --story {self.name} needs {self.fewest} or more")

    @abstractmethod
    def settings(self, settings: Settings) -> Settings:
        """The coordinator's settings for this story, given those that were asked for."""

    @abstractmethod
    def tell(self, world: "World", held_out: dict[str, Recording]) -> tuple[list[str], dict[str, Figure]]:
        """Sentences and figures of a world that is over."""

    def tale(self, world: "World", held_out: dict[str, Recording]) -> Tale:
        """What happened."""
        told, figures = self.tell(world, held_out)
        return Tale(self.name, self.title, told, {"answers": answers(world), "failed_answers": failed(world)} | figures)


def answers(world: "World") -> int:
    """Windows that were answered, by the nodes' own records."""
    return sum(device.agent.shadow.next_seq() for device in world.devices.values())


def failed(world: "World") -> int:
    """Windows that a device saw and that have no answer on its record."""
    seen = (min(len(d.recording.live), world.progress.hour - d.joined) for d in world.devices.values())
    return sum(seen) - answers(world)


def events(world: "World", name: str) -> list[dict[str, Any]]:
    """What was recorded of the world under one name, oldest first."""
    return [event for event in read_events(world.folder / "events.jsonl") if event["event"] == name]


def accuracy(task: Task, weights: Flat, windows: Windows) -> float:
    """The share of ``windows`` that the task's model names rightly with these weights, in float32."""
    model = task.model().eval()
    set_weights(model, weights)
    with torch.no_grad():
        labels = model(torch.from_numpy(task.signature.clipped(windows.x))).argmax(1).numpy()
    return float((labels == windows.y).mean())


def split(recording: Recording, share: float) -> Recording:
    """The same recording with its first ``share`` for training and the rest as the live stream."""
    x = np.concatenate([recording.train.x, recording.live.x])
    y = np.concatenate([recording.train.y, recording.live.y])
    border = int(len(y) * share)
    return Recording(recording.person, Windows(x[:border], y[:border]), Windows(x[border:], y[border:]))


def count(number: int, what: str) -> str:
    """A number and its noun: ``1 node``, ``no node``, ``3 nodes``."""
    return f"{number or 'no'} {what}{'s' * (number > 1)}"
