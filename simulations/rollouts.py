"""The figures of releases on their way: which answered on which node, and what opened each wave."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

from coordinator.rollout import Phase
from fleet.evidence import STRICTNESS
from simulations import charts, history
from simulations.charts import Axis, Interval
from simulations.facts import Event, Facts, Offered
from simulations.figures import Figure, some

LANES = 40  # nodes drawn in the timeline
TICKS = 4  # below the timeline, which is narrow on a telephone
FARTHEST = 60  # accuracy points that an evidence axis reaches at most

_OUTCOMES = {
    Phase.DONE.value: "open to all",
    Phase.KEPT_OLD.value: "kept back",
    Phase.HALTED.value: "halted and withdrawn",
}
_LOOKS = {Phase.KEPT_OLD.value: "b", Phase.HALTED.value: "e"}


def answering(facts: Facts) -> Figure:
    """Which release answered on which node, and when."""
    names = [device.device for device in facts.measured.seen if not device.held_out]
    lanes = history.lanes(names[:LANES], facts.events, facts.hours)
    left_out = f" {len(names) - LANES} more nodes are not drawn." if len(names) > LANES else ""
    return Figure(
        name="Releases by node",
        chart=charts.timeline(
            "Releases by node",
            f"which of {len(facts.releases)} releases answered on {len(names)} nodes, over {facts.hours:.0f} hours",
            [history.as_played(lane, facts.began) for lane in lanes],
            x=_played_hours(facts.began),
        ),
        caption="A bar is the release that answers; hatched, it is on probation, with the old one running beside it, "
        "until enough windows were judged: a node whose windows have run out stays there. "
        "The thin line below is a release in shadow: it answers too, unheard. × is a release rejected on that node, "
        f"↩ one rolled back.{_jumps(facts.began)}{left_out}",
        columns=("release", "from base", "at the end", "takes back"),
        rows=tuple(
            (f"R{r.number}", str(r.base), r.phase.value, f"R{r.withdraws}" if r.withdraws else "–")
            for r in facts.releases
        ),
    )


def evidence(facts: Facts) -> Figure | None:
    """What opened each wave, or did not; None if nothing was judged."""
    settings = facts.settings.release
    z = NormalDist().inv_cdf(1 - STRICTNESS * settings.alpha)
    releases = {release.number: release for release in facts.releases}
    rollouts = [event for event in facts.events if event.name == "rollout" and event.fields.get("release") in releases]
    judged = [event for event in rollouts if "judged" in event.fields]
    if not judged:
        return None
    entries = [_interval(event, releases[event.fields["release"]], z) for event in judged]
    shown = [abs(b) for e in entries if e.bounds for b in (e.bounds if "shadow" in e.name else e.bounds[1:2])]
    reach = min(max(10 * math.ceil(max(shown, default=0) / 10 + 0.1), 20), FARTHEST)
    margin = f"{100 * settings.margin:g}"
    return Figure(
        name="Wave by wave",
        chart=charts.interval_chart(
            "Evidence wave by wave",
            "; ".join(f"{entry.name}: {entry.note}" for entry in entries),
            entries,
            x=Axis(
                "accuracy gained over the old release, points",
                -reach,
                reach,
                tuple((v, _signed(v, 0)) for v in (-reach, -reach / 2, 0, reach / 2, reach)),
            ),
            lines=((0, "zero", "no change"), (-100 * settings.margin, "margin", f"margin of {margin} points")),
        ),
        caption=f"A bar reaches {z:.2f} standard errors to either side, the noise of private reports included. The "
        "decision takes the error that it would have at the margin, and half a window more, so a bar that ends close "
        "to the margin may have missed it. Shadow opens wave 1 only if the evidence lies that far right of the margin; "
        f"something {margin} points worse then passes with a chance of at most {100 * settings.alpha:g} %, for "
        "windows drawn without replacement and reported honestly. A wave halts if its evidence lies that far left of "
        "the margin: so few windows show a disaster, and nothing finer. It also halts if fewer than half of its nodes "
        "have reported when patience is over. ‹ and › go on beyond the edge.",
        columns=("judged", "outcome"),
        rows=tuple((entry.name, entry.note) for entry in entries),
    )


def _played_hours(began: Sequence[float]) -> Axis:
    """Every hour that was played is as wide as any other, however far apart they lie."""
    last = len(began) - 1
    ticks = {round(place * last / (TICKS - 1)) for place in range(TICKS)}
    return Axis("simulated hours", 0, last, tuple((index, f"{began[index]:,.0f}") for index in sorted(ticks)))


def _jumps(began: Sequence[float]) -> str:
    """A sentence where the clock of the simulation jumped."""
    jump = next((hour for hour, next_ in pairwise(began) if next_ - hour > 1), None)
    return "" if jump is None else f" From hour {jump:.0f} on, the hours that were played lie far apart."


def _interval(event: Event, release: Offered, z: float) -> Interval:
    fields = event.fields
    phase, stage, reports = str(fields["phase"]), str(fields["judged"]), int(fields["reports"])
    windows = reports * (release.shadow_windows if stage == Phase.SHADOW.value else release.probation_windows)
    outcome = f"wave {fields['wave']} opens" if phase == Phase.WAVE.value else _OUTCOMES.get(phase, phase)
    name = f"R{release.number} {stage}: {some(reports, 'report', 'reports')}, {windows} windows"
    if fields.get("error") is None:
        return Interval(name, f"no evidence: {outcome}", "e", None)
    gain, error = 100 * fields["gain"], 100 * fields["error"]
    low, high = gain - z * error, gain + z * error
    note = f"{_signed(gain)} ({_signed(low)} to {_signed(high)}): {outcome}"
    return Interval(name, note, _LOOKS.get(phase, "c"), (low, gain, high))


def _signed(points: float, digits: int = 1) -> str:
    return f"{points:+.{digits}f}".replace("-", "−") if points else "0"
