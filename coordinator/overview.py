"""What stands in the registry, as plain values for people and programs to read."""

from datetime import datetime, timedelta
from typing import Any

from coordinator.coordinator import Coordinator
from coordinator.registry import Registry
from coordinator.rollout import RolloutState
from coordinator.round import Round
from fleet.release import Release
from fleet.settings import Settings

SOON_S, LATER_S = 2, 300


def poll_s(registry: Registry, settings: Settings, now: datetime) -> int:
    """In how many seconds a node should ask again: seconds while a round is open, minutes otherwise.

    While nobody knows when something comes, for a rollout runs or a round waits for nodes, a small part of what is
    scheduled: a round that opens then is heard of in the first quarter of its time.
    """
    rounds = registry.rounds.all()
    if registry.rounds.current():
        return SOON_S
    some_time = min(settings.round.every / 20, settings.round.deadline / 4, settings.release.patience / 20)
    left = timedelta(seconds=LATER_S)
    if len(rounds) < settings.round.rounds:
        left = rounds[-1].opened + settings.round.every - now if rounds else timedelta(0)
    if left <= timedelta(0):
        left = some_time
    if registry.releases.running():
        left = min(left, some_time)
    return int(min(max(left.total_seconds(), SOON_S), LATER_S))


def for_devices(registry: Registry, settings: Settings, now: datetime, shelf: int) -> dict[str, Any]:
    """The open round, the version of what is published, and when to ask again."""
    current = registry.rounds.current()
    return {
        "round": current.number if current else None,
        "shelf": shelf,
        "poll_s": poll_s(registry, settings, now),
    }


def status(coordinator: Coordinator, settings: Settings, online: set[int], now: datetime) -> dict[str, Any]:
    """All of it at a glance."""
    registry = coordinator.registry
    listed, current = rounds(registry, settings), registry.rounds.current()
    running, newest = registry.releases.running(), registry.releases.newest()
    active = registry.roster.active()
    return {
        "now": now.isoformat(),
        "nodes": {"enrolled": len(active), "online": len(online & set(active.values()))},
        "rounds": {
            "done": sum(1 for round_ in listed if round_["state"] == "closed"),
            "played": len(listed),
            "planned": settings.round.rounds,
            "open": next((r for r in listed if current and r["number"] == current.number), None),
            "last": next(({"number": r["number"], "state": r["state"]} for r in reversed(listed)), None),
            "next": _next(registry, settings),
        },
        "bases": registry.rounds.bases()[-1].number,
        "release": newest[0].number if newest else None,
        "serving": registry.releases.serving().number,
        "rollout": rollout(registry, *running) if running else None,
        "updates_counted": registry.rounds.counted(),
        "refused": len(registry.rounds.refusals()),
    }


def nodes(registry: Registry, online: set[int]) -> list[dict[str, Any]]:
    """Everybody who was ever enrolled."""
    current = registry.rounds.current()
    answered = registry.rounds.answered(current.number) if current else set()
    return [
        {
            "name": node.name,
            "flower_id": node.flower_id,
            "state": "revoked" if node.revoked else "online" if node.flower_id in online else "offline",
            "answered": node.name in answered if current else None,
        }
        for node in registry.roster.entries()
    ]


def rounds(registry: Registry, settings: Settings) -> list[dict[str, Any]]:
    """All rounds, oldest first."""
    refused: dict[int, int] = {}
    for refusal in registry.rounds.refusals():
        refused[refusal.round] = refused.get(refusal.round, 0) + 1
    bases = {base.round: base.number for base in registry.rounds.bases() if base.number}
    return [
        _round(round_)
        | {
            "updates": len(registry.rounds.answered(round_.number)),
            "quorum": settings.round.min_updates,
            "refused": refused.get(round_.number, 0),
            "made": bases.get(round_.number),
        }
        for round_ in registry.rounds.all()
    ]


def releases(registry: Registry) -> list[dict[str, Any]]:
    """All releases, oldest first."""
    return [_release(release, state) for release, state in registry.releases.all()]


def release(registry: Registry, number: int) -> dict[str, Any] | None:
    """One release with its manifest; None if there is none of that number."""
    for found, state in registry.releases.all():
        if found.number == number:
            manifest = {"artifact": found.artifact, "payload": found.payload, "template": found.template}
            return _release(found, state) | manifest | {"golden": found.golden, "runtime": found.runtime}
    return None


def rollout(registry: Registry, found: Release, state: RolloutState) -> dict[str, Any]:
    """Where a rollout stands and what was reported in this phase."""
    counts = registry.releases.counts(state.release, state.watch)
    won, lost = sum(count[0] for count in counts.values()), sum(count[1] for count in counts.values())
    return _release(found, state) | {"reports": len(counts), "won": won, "lost": lost}


def _next(registry: Registry, settings: Settings) -> str | None:
    """When the timer opens the next round."""
    listed = registry.rounds.all()
    if registry.rounds.current() or len(listed) >= settings.round.rounds:
        return None
    wait: timedelta = settings.round.every
    return (listed[-1].opened + wait).isoformat() if listed else "now"


def _round(round_: Round) -> dict[str, Any]:
    return {
        "number": round_.number,
        "base": round_.base,
        "state": round_.state.value,
        "opened": round_.opened.isoformat(),
        "deadline": round_.deadline.isoformat(),
    }


def _release(found: Release, state: RolloutState) -> dict[str, Any]:
    return {
        "number": found.number,
        "base": found.base,
        "phase": state.phase.value,
        "wave": state.wave,
        "since": state.since.isoformat(),
        "paused": state.paused,
        "withdraws": found.withdraws or None,
    }
