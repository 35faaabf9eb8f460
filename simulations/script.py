"""The world outside of a fleet, as a story scripts it: links, clocks, sensors, people; never how it ends."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fleet.settings import Settings
from fleet.task import Recording
from node.agent import Agent
from node.client_app import Participant
from simulations.grid import Fate
from simulations.shelf import Reach

if TYPE_CHECKING:
    from simulations.world import World


class Script:
    """An uneventful world: every link holds, nobody interferes. A story overrides what it needs.

    A killed run goes on with a new script, in the middle of an hour: what it does follows from the world's state.
    """

    def recordings(self, fleet: dict[str, Recording]) -> dict[str, Recording]:
        """What each device of the fleet will see."""
        return fleet

    def latecomers(self, fleet: list[str]) -> set[str]:
        """Devices that are not there from the first hour on; they come by ``World.join``."""
        return set()

    def pinned(self, name: str, settings: Settings) -> Settings:
        """The settings that the owner of ``name`` pins on it, given the coordinator's."""
        return settings

    def participant(self, agent: Agent, folder: Path) -> Participant:
        """Who answers for a node; ``folder`` is the device's disk, which its owner can read."""
        return agent

    def moment(self, hour: int) -> timedelta:
        """When an hour begins, since the start of the simulation."""
        return timedelta(hours=hour)

    def watched_minutes(self, hour: int) -> int:
        """How far into an hour the nodes are followed minute by minute; most hours end when their round does."""
        return 0

    def fate(self, name: str, at: timedelta) -> Fate:
        """What becomes of Flower's messages to a device."""
        return Fate.DELIVERED

    def reach(self, name: str, at: timedelta) -> Reach:
        """What a device can read of the coordinator's shelf."""
        return Reach.NOTHING if self.fate(name, at) is Fate.OFFLINE else Reach.ALL

    def reading(self, name: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the sensor makes of a window."""
        return x

    def before_hour(self, world: "World") -> None:
        """What people do before an hour is played; done twice if the hour was cut short."""

    def is_over(self, world: "World") -> bool:
        """Whether nothing more is to come from outside."""
        return True


PLAIN = Script()
