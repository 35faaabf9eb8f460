"""What a run left behind in its folder, read back for people who ask later."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from coordinator.registry import Registry
from coordinator.rollout import Phase
from coordinator.round import RoundState
from fleet.events import read_events
from fleet.settings import Settings
from simulations.clock import START
from simulations.measurement import Measurements
from simulations.progress import read_progress
from simulations.scenario import Wish
from simulations.script import PLAIN
from simulations.stories import story_named
from simulations.world import HOUR


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log: when, in simulated hours from the start, who, what, and its fields."""

    hour: float
    who: str
    name: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlayedRound:
    """A round that is over: how it ended, and the replies to it. ``base`` is what nodes learned from."""

    number: int
    base: int
    state: RoundState
    updates: int
    refused: int


@dataclass(frozen=True, slots=True)
class Offered:
    """A release and where its rollout stood at the end."""

    number: int
    base: int
    withdraws: int
    phase: Phase
    wave: int
    shadow_windows: int
    probation_windows: int


@dataclass(frozen=True, slots=True)
class Story:
    """What a story says of its own run: sentences, and figures by name."""

    title: str
    told: tuple[str, ...]
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it.

    Attributes:
        result: The documented object of ``result.json``.
        bases_down: How many bases devices pulled.
        hours: How long was simulated.
        began: The simulated hour in which each hour that was played began, and the one after the last.
        built_in: Whether the task is ours: of how another was tuned nothing is known.
    """

    result: dict[str, Any]
    settings: Settings
    bases_down: int
    hours: float
    began: tuple[float, ...]
    rounds: tuple[PlayedRound, ...]
    releases: tuple[Offered, ...]
    events: tuple[Event, ...]
    measured: Measurements
    story: Story | None
    built_in: bool


def read(folder: Path) -> Facts:
    """The facts of a run that is over."""
    events = _events(folder / "events.jsonl")
    registry = Registry(f"sqlite:///{folder / 'coordinator' / 'registry.db'}")
    try:
        rounds, releases = _rounds(registry), _releases(registry)
    finally:
        registry.close()
    wish, settings = Wish.saved(folder)
    progress = read_progress(folder)
    return Facts(
        result=json.loads((folder / "result.json").read_bytes()),
        settings=settings,
        bases_down=progress.bases_down,
        hours=max([progress.hour, *(event.hour for event in events)]),
        began=_began(wish.story, progress.hour),
        rounds=rounds,
        releases=releases,
        events=events,
        measured=Measurements.load(folder),
        story=_story(folder / "story.json"),
        built_in=wish.config is None,
    )


def _began(story: str | None, played: int) -> tuple[float, ...]:
    script = story_named(story) if story else PLAIN
    return tuple(script.moment(hour) / HOUR for hour in range(played + 1))


def _events(path: Path) -> tuple[Event, ...]:
    return tuple(_event(fields) for fields in read_events(path))


def _event(fields: dict[str, Any]) -> Event:
    hour = (datetime.fromisoformat(fields.pop("at")) - START).total_seconds() / 3600
    return Event(hour, fields.pop("who"), fields.pop("event"), fields)


def _rounds(registry: Registry) -> tuple[PlayedRound, ...]:
    refused = Counter(refusal.round for refusal in registry.rounds.refusals())
    return tuple(
        PlayedRound(
            round_.number,
            round_.base,
            round_.state,
            len(registry.rounds.answered(round_.number)),
            refused[round_.number],
        )
        for round_ in registry.rounds.all()
    )


def _releases(registry: Registry) -> tuple[Offered, ...]:
    return tuple(
        Offered(
            release.number,
            release.base,
            release.withdraws,
            state.phase,
            state.wave,
            release.shadow_windows,
            release.probation_windows,
        )
        for release, state in registry.releases.all()
    )


def _story(path: Path) -> Story | None:
    if not path.exists():
        return None
    story = json.loads(path.read_bytes())
    return Story(story["title"], tuple(story["told"]), dict(story.get("figures", {})))
