"""A day offline: half of the fleet loses its link for 24 hours, and one node for eight months.

Both keep answering, and have nothing to read the shelf from. After a month the wanderer finds a mirror, with a release
that it has not seen, signed and expired. The others go on learning. Who comes back brings the session that waited.
"""

import math
from collections import Counter
from collections.abc import Set
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from coordinator.round import RoundState
from fleet.settings import RoundSettings, Settings
from fleet.task import Recording
from simulations.clock import START
from simulations.grid import Fate
from simulations.shelf import Reach
from simulations.stories.story import Figure, Story, answers, count, events, failed, split

if TYPE_CHECKING:
    from simulations.world import World

LOST_HOUR = 4
LOST = timedelta(hours=LOST_HOUR, seconds=30)  # after a round has asked, before its nodes have learned
BACK_HOUR = LOST_HOUR + 24
BACK = timedelta(hours=BACK_HOUR, minutes=20)
MONTHS = 8
MONTH = timedelta(days=30)
AWAKE = BACK_HOUR + 16  # from then on, an hour a month is played
MIRROR = AWAKE * timedelta(hours=1) + MONTH  # when the wanderer first reads what was copied a month before
HOME_HOUR = AWAKE + MONTHS
HOME = AWAKE * timedelta(hours=1) + MONTHS * MONTH
ROUNDS = HOME_HOUR + 3
RELEASES_A_SESSION = 3
MAX_STALENESS = BACK_HOUR - LOST_HOUR + 2  # a session that waited for a day still counts, for a fifth
TRAINING_SHARE = 0.35


class OfflineDay(Story):
    """Who is away when is all that this scripts."""

    name = "offline-day"
    title = "A day offline, and eight months"
    fixed = frozenset({"rounds"})

    def __init__(self) -> None:
        self._away: set[str] = set()
        self._wanderer = ""

    def settings(self, settings: Settings) -> Settings:
        """A round an hour, closed by half of the fleet; one release, offered just before the link comes back."""
        return settings.changed(
            privacy={"planned_releases": ROUNDS * RELEASES_A_SESSION},
            round={
                "rounds": ROUNDS,
                "deadline": timedelta(minutes=3),
                "max_staleness": MAX_STALENESS,
                "min_updates": 2,
            },
            release={
                "every_rounds": BACK_HOUR,
                "waves": (1.0,),
                "margin": 0.1,
                "shadow_windows": 10,
                "patience": timedelta(hours=13),
            },
        )

    def recordings(self, fleet: dict[str, Recording]) -> dict[str, Recording]:
        """Enough windows for a day; every second device will be away, the last of them for long."""
        self._away = set(sorted(fleet)[1::2])
        self._wanderer = max(self._away)
        return {name: split(recording, TRAINING_SHARE) for name, recording in fleet.items()}

    def moment(self, hour: int) -> timedelta:
        """An hour an hour; after the day, an hour a month, until the wanderer is home."""
        return timedelta(hours=hour) + min(max(hour - AWAKE, 0), MONTHS) * (MONTH - timedelta(hours=1))

    def watched_minutes(self, hour: int) -> int:
        """The hour of the return is watched minute by minute, to see who downloads when."""
        return 60 if hour in (BACK_HOUR, BACK_HOUR + 1) else 0

    def fate(self, name: str, at: timedelta) -> Fate:
        """Offline while away; and what comes back talks over a network that delivers everything twice."""
        if self._is_away(name, at):
            return Fate.OFFLINE
        return Fate.TWICE if name in self._away and at >= BACK else Fate.DELIVERED

    def reach(self, name: str, at: timedelta) -> Reach:
        """The wanderer's mirror has all that there was before the months began, the release too, and nothing since."""
        if not self._is_away(name, at):
            return Reach.ALL
        return Reach.FROZEN if at >= MIRROR else Reach.NOTHING

    def tell(self, world: "World", held_out: dict[str, Recording]) -> tuple[list[str], dict[str, Figure]]:
        """From the registry, the ledgers and the events."""
        rounds = world.coordinator.registry.rounds
        devices = world.devices.values()
        closed = [r for r in rounds.all() if r.state is RoundState.CLOSED]
        old = [entry.staleness for r in closed for entry in rounds.entries(r) if entry.staleness > 1]
        oldest_base = closed[-1].base - MAX_STALENESS
        kept_back = sum(base < oldest_base for device in devices for base in device.agent.unsent_bases())
        refused, staged = self._expired(world)
        back, connected = self._downloads(world)
        figures: dict[str, Figure] = {
            "nodes_away_a_day": len(self._away) - 1,
            "rounds_closed_meanwhile": sum(LOST_HOUR < r.number <= BACK_HOUR for r in closed),
            "epsilon_max": _finite(max(device.agent.ledger.epsilon() for device in devices)),
            "day_old_sessions_counted": len(old),
            "day_old_staleness": max(old, default=0),
            "max_staleness": MAX_STALENESS,
            "usual_max_staleness": RoundSettings().max_staleness,
            "older_sessions_kept_back": kept_back,
            "downloads_after_return": sum(back.values()),
            "downloads_in_busiest_minute": max(back.values(), default=0),
            "connected_in_busiest_minute": max(connected.values(), default=0),
            "expired_metadata_refused": refused,
            "staged_while_expired": staged,
            "on_newest_release": _up_to_date(world),
        }
        told = [
            f"{count(len(self._away) - 1, 'node')} of {len(devices)} lost the link for 24 hours and one for {MONTHS} "
            f"months; {failed(world) or 'none'} of {answers(world)} windows went without an answer, and the others "
            f"closed {figures['rounds_closed_meanwhile']} rounds in that day.",
            f"Back again, {count(len(old), 'session')} that had waited for a day counted once each, for this story "
            f"lets one be {MAX_STALENESS} bases old, where {RoundSettings().max_staleness} is usual, and "
            f"{count(kept_back, 'session')} that had waited for months was kept back; those who came back downloaded "
            f"the new release {count(sum(back.values()), 'time')}, at most {max(back.values(), default=0)} in a "
            f"minute, while up to {max(connected.values(), default=0)} of those who had stayed did so at once, for "
            f"here they all look on the hour.",
            f"After a month the wanderer found a mirror with that release, refused its expired metadata {refused} "
            f"times and staged {count(staged, 'release')} from it; {figures['on_newest_release']} of {len(devices)} "
            f"nodes end on the newest release.",
        ]
        return told, figures

    def _is_away(self, name: str, at: timedelta) -> bool:
        return name in self._away and LOST <= at < (HOME if name == self._wanderer else BACK)

    def _downloads(self, world: "World") -> tuple[Counter[str], Counter[str]]:
        """The new release staged, by minute: by those who came back after a day, and by those who never left."""
        staged = [event for event in events(world, "staged") if event["release"] > 0]
        back, connected = self._away - {self._wanderer}, world.devices.keys() - self._away
        return _by_minute(staged, back), _by_minute(staged, connected)

    def _expired(self, world: "World") -> tuple[int, int]:
        """How often the wanderer refused expired metadata, and what it staged from its mirror."""
        kept = [event for event in events(world, "kept") if event["who"] == self._wanderer]
        refused = sum("expired" in event["reason"] for event in kept)
        staged = [_at(event) for event in events(world, "staged") if event["who"] == self._wanderer]
        return refused, sum(MIRROR <= at < HOME for at in staged)


def _by_minute(staged: list[dict[str, Any]], who: Set[str]) -> Counter[str]:
    return Counter(event["at"][:16] for event in staged if event["who"] in who)


def _at(event: dict[str, str]) -> timedelta:
    return datetime.fromisoformat(event["at"]) - START


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _up_to_date(world: "World") -> int:
    newest = world.coordinator.registry.releases.serving().number
    return sum(device.agent.stages.serving()[0] == newest for device in world.devices.values())
