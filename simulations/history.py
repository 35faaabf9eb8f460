"""Which release answered on each node, and when: told by the log."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from node.promotion import Stage
from simulations.charts import Lane, Span
from simulations.facts import Event

LOOKS = 5  # colours of releases after release 0, over and over


@dataclass(slots=True)
class _Node:
    """A node as the log goes by: the release that answers, since when, and the one watched in shadow."""

    serving: int | None = None
    before: int | None = None
    probation: bool = False
    since: float = 0.0
    shadow: tuple[int, float] | None = None


def lanes(names: Iterable[str], events: Iterable[Event], hours: float) -> list[Lane]:
    """A lane for each node, over ``hours``: what answers, on probation hatched, and shadows as a thin line."""
    heard: dict[str, list[Event]] = {name: [] for name in names}
    for event in events:
        if event.who in heard:
            heard[event.who].append(event)
    return [_lane(name, seen, hours) for name, seen in heard.items()]


def as_played(lane: Lane, began: Sequence[float]) -> Lane:
    """The lane over hours as they were played, of which each ``began`` at a simulated hour; the last is the end."""

    def place(hour: float) -> float:
        return float(np.interp(hour, began, range(len(began))))

    spans = (replace(span, low=place(span.low), high=place(span.high)) for span in lane.spans)
    return replace(lane, spans=tuple(spans), moments=tuple((place(at), sign, note) for at, sign, note in lane.moments))


def look_of(release: int) -> str:
    """The class of a release's colour."""
    return "r0" if release == 0 else f"r{(release - 1) % LOOKS + 1}"


def _lane(name: str, events: list[Event], hours: float) -> Lane:
    node = _Node()
    spans = [span for event in events for span in _spans(node, event)]
    spans += [*_answered(node, hours), *_watched(node, hours)]
    moments = tuple(moment for event in events if (moment := _moment(event)))
    return Lane(name, tuple(span for span in spans if span.high > span.low), moments)


def _spans(node: _Node, event: Event) -> Iterator[Span]:
    """The stretches that end with this event; ``node`` is brought up to date."""
    release = event.fields.get("release")
    if not isinstance(release, int):
        return
    if event.name == Stage.SHADOW:
        node.shadow = (release, event.hour)
    if event.name in (Stage.PROBATION, Stage.REJECTED, Stage.VETOED, Stage.MUTED):
        yield from _watched(node, event.hour)
    if event.name == Stage.PROBATION:
        yield from _answered(node, event.hour)
        node.before, node.serving, node.probation, node.since = node.serving, release, True, event.hour
    if event.name == Stage.COMMITTED and node.serving == release:
        yield from _answered(node, event.hour)
        node.probation, node.since = False, event.hour
    if event.name in (Stage.ROLLED_BACK, Stage.REJECTED) and node.serving == release:
        yield from _answered(node, event.hour)
        node.serving, node.probation, node.since = node.before, False, event.hour


def _answered(node: _Node, until: float) -> Iterator[Span]:
    if node.serving is not None:
        kind = "hatched" if node.probation else "solid"
        how = "on probation" if node.probation else "answering"
        note = f"release {node.serving} {how}, hour {node.since:.0f} to {until:.0f}"
        yield Span(node.since, until, f"R{node.serving}", look_of(node.serving), kind, note)


def _watched(node: _Node, until: float) -> Iterator[Span]:
    if node.shadow is not None:
        release, since = node.shadow
        note = f"release {release} in shadow, hour {since:.0f} to {until:.0f}"
        yield Span(since, until, f"R{release}", look_of(release), "thin", note)
        node.shadow = None


def _moment(event: Event) -> tuple[float, str, str] | None:
    reason = str(event.fields.get("reason", ""))
    if event.name == Stage.ROLLED_BACK:
        return event.hour, "↩", f"release {event.fields.get('release')} rolled back: {reason}"
    if event.name in (Stage.VETOED, Stage.MUTED) and "veto" in reason:
        return event.hour, "×", f"release {event.fields.get('release')} refused: {reason}"
    if event.name == Stage.REJECTED and "superseded" not in reason and "all the same" not in reason:
        return event.hour, "×", f"release {event.fields.get('release')} rejected: {reason}"
    return None
