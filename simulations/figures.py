"""The figures of a report: facts drawn, each with a caption for those who doubt it, and its numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from markupsafe import Markup

from fleet.privacy.gaussian import epsilon_of, mu_of
from simulations import charts, shares
from simulations.charts import Axis, Series
from simulations.facts import Facts
from simulations.measurement import Own, Seen
from simulations.shares import Share

TOGETHER = (1, 2, 5, 13, 50)  # windows for whose joint presence ε is given


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn chart, what a sceptic wants to know of it, and its numbers: column names, then rows."""

    name: str
    chart: Markup
    caption: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def accuracy(facts: Facts, *, held_out: bool) -> Figure:
    """Accuracy of every base, beside what a device would have otherwise."""
    exact, int8 = (shares.by_base(facts.measured, kind, held_out=held_out) for kind in ("float32", "int8"))
    first, last = min(exact), max(exact)
    series = [
        Series("float32 master", "a", "line", tuple((base, 100 * s.value, 0) for base, s in exact.items())),
        Series("int8 base", "a", "dot", tuple((base, 100 * s.value, 100 * s.error) for base, s in int8.items())),
        Series("offered as a release", "b", "ring", tuple((b, 100 * int8[b].value, 0) for b in _offered(facts))),
        *(
            Series(f"{name}: {share}", look, "dash", ((first, 100 * share.value, 0), (last, 100 * share.value, 0)))
            for name, look, share in _rivals(facts, held_out=held_out)
        ),
    ]
    name = "New devices" if held_out else "The same devices, later"
    return Figure(
        name=name,
        chart=charts.line_chart(
            f"Accuracy by round: {name.lower()}",
            f"float32: {exact[first]} with base {first}, {exact[last]} with base {last}",
            series,
            x=charts.axis_to("round", last),
            y=_percent_axis(series),
        ),
        caption=f"{_judges(facts, held_out=held_out)}. Bars: one standard error, as if windows were independent; "
        f"those of one person are not, so the truth is wider.{'' if held_out else _who_learned_alone(facts, held_out)}",
        columns=("base", "float32", "int8"),
        rows=tuple((str(base), str(s), str(int8.get(base, "–"))) for base, s in exact.items()),
    )


def labels(facts: Facts, *, held_out: bool) -> Figure:
    """Accuracy on a device's later windows, by how many of its earlier ones have labels."""
    steps = shares.own_at(facts.measured, held_out=held_out)
    names = [_step_name(step) for step in steps]
    series = [
        _means(facts, list(steps.values()), "personal", "the fleet's last base, own head", "c", "dot"),
        _means(facts, list(steps.values()), "alone", "each device alone", "d", "square"),
    ]
    series = [replace(each, nudge=nudge) for each, nudge in zip(series, (-5, 5), strict=True) if each.points]
    name = "New devices" if held_out else "Devices of the fleet"
    seen = [device for device in facts.measured.seen if device.held_out is held_out]
    most = median([device.train for device in seen]) if seen else 0
    return Figure(
        name=name,
        chart=charts.line_chart(
            f"Accuracy by labelled windows: {name.lower()}",
            "; ".join(f"{each.name}: {_ends(each)}" for each in series),
            series,
            x=Axis("labelled windows of the device", -0.4, len(names) - 0.6, tuple(enumerate(names))),
            y=_percent_axis(series),
        ),
        caption=f"Mean over {_wearers(seen)}, on later windows of the same device; bars: one standard error of that "
        f"mean. “All” is {most:g} windows in the median. At 0 it is the fleet's base as it is. Neither model leaves "
        f"its device, so neither has noise.{_who_learned_alone(facts, held_out)}",
        columns=("labelled windows", *(each.name for each in series)),
        rows=tuple((name, *(_value_at(each, at) for each in series)) for at, name in enumerate(names)),
    )


def fleet_pays(facts: Facts, *, held_out: bool) -> list[tuple[str, bool]]:
    """For each number of labelled windows, whether the fleet's base is the better start.

    That is on the mean over the devices where both were measured.
    """
    found = []
    for step, rows in shares.own_at(facts.measured, held_out=held_out).items():
        both = [row for row in rows if row.alone is not None and row.personal is not None]
        alone, personal = (shares.known(facts.measured, both, which) for which in ("alone", "personal"))
        if alone and personal:
            found.append((_step_name(step), fmean(s.value for s in personal) > fmean(s.value for s in alone)))
    return found


def tuning_harms(facts: Facts, *, held_out: bool) -> list[str]:
    """The numbers of labelled windows with which an own head makes the fleet's base worse, on the mean over devices."""
    steps = shares.own_at(facts.measured, held_out=held_out)
    means = [(step, shares.known(facts.measured, rows, "personal")) for step, rows in steps.items()]
    untuned = [share.value for step, known in means for share in known if step == 0]
    return [
        _step_name(step)
        for step, known in means
        if known and untuned and fmean(s.value for s in known) < fmean(untuned)
    ]


def epsilon(facts: Facts) -> Figure | None:
    """What training cost, session by session; None without privacy."""
    ledgers = [[e for e in row.sessions if e is not None] for row in facts.measured.spent]
    budget = facts.settings.privacy.epsilon
    if not math.isfinite(budget) or not any(ledgers):
        return None
    ordered = sorted(ledgers, key=lambda ledger: (ledger[-1:], len(ledger)))
    most, least = ordered[-1], ordered[0]
    series = [Series(f"device that spent most: {most[-1]:.2f}", "a", "line", _steps(most))]
    if least != most:
        spent = least[-1] if least else 0
        series.append(Series(f"device that spent least: {spent:.2f}", "c", "line", _steps(least)))
    series.append(Series(f"budget: {budget:g}", "d", "dash", ((0, budget, 0), (len(most), budget, 0))))
    mu = mu_of(most[-1], facts.settings.privacy.delta)
    return Figure(
        name="ε spent in training",
        chart=charts.line_chart(
            "Epsilon spent in training",
            f"It grows to {most[-1]:.2f} in {len(most)} sessions, of a budget of {budget:g}",
            series,
            x=charts.axis_to("learning sessions of a device, one a round", len(most)),
            y=charts.axis_to("ε of one unit", budget),
        ),
        caption=f"At δ = {facts.settings.privacy.delta:g}, exact for Gaussian noise. A ledger is charged on the disk "
        "before noise is drawn: what it says is never less than what was spent.",
        columns=("units hidden together", "ε"),
        rows=tuple((str(k), f"{epsilon_of(k * mu, facts.settings.privacy.delta):,.1f}") for k in TOGETHER),
    )


def updates(facts: Facts) -> Figure:
    """How many updates each round got."""
    most = max((played.updates for played in facts.rounds), default=0)
    last = max((played.number for played in facts.rounds), default=1)
    bars = [
        (r.number, r.updates, f"round {r.number}, {r.state.value}: {r.updates} updates, {r.refused} refused")
        for r in facts.rounds
    ]
    return Figure(
        name="Updates by round",
        chart=charts.bar_chart(
            "Updates by round",
            f"{most} at most, over {len(bars)} rounds",
            bars,
            x=Axis("round", 0.3, last + 0.7, charts.axis_to("", last).ticks[1:]),
            y=charts.axis_to("updates", most),
        ),
        caption=f"A round closes when all have answered, or at its deadline with {facts.settings.round.min_updates} "
        "updates or more. Every update counts once, and alike.",
        columns=("round", "ended", "updates", "refused"),
        rows=tuple((str(r.number), r.state.value, str(r.updates), str(r.refused)) for r in facts.rounds),
    )


def some(number: int, one: str, more: str) -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else more}"


def _offered(facts: Facts) -> list[int]:
    return sorted({release.base for release in facts.releases if release.number and not release.withdraws})


def _rivals(facts: Facts, *, held_out: bool) -> list[tuple[str, str, Share]]:
    alone, personal = (shares.own_models(facts.measured, which) for which in ("alone", "personal"))
    base_0 = shares.by_base(facts.measured, "float32", held_out=True)[0]
    found = [("base 0", "c", base_0), ("one other device's model", "d", shares.lent(facts.measured))]
    if not held_out:
        found = [("each device alone", "d", alone), ("last base, own head", "c", personal)]
    return [(name, look, share) for name, look, share in found if share]


def _means(facts: Facts, steps: Sequence[list[Own]], which: str, name: str, look: str, mark: str) -> Series:
    points = []
    for at, rows in enumerate(steps):
        values = [100 * share.value for share in shares.known(facts.measured, rows, which)]
        if values:
            error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            points.append((at, fmean(values), error))
    return Series(name, look, mark, tuple(points))


def _step_name(step: float) -> str:
    return f"{step:g}" if math.isfinite(step) else "all"


def _steps(ledger: Sequence[float]) -> tuple[tuple[float, float, float], ...]:
    return ((0, 0, 0), *((session, spent, 0) for session, spent in enumerate(ledger, 1)))


def _judges(facts: Facts, *, held_out: bool) -> str:
    seen = [device for device in facts.measured.seen if device.held_out is held_out]
    windows = f"n = {sum(device.judged for device in seen):,} windows of {_wearers(seen)}"
    return f"{windows}, who took no part" if held_out else f"{windows}; none of these windows was learned from"


def _who_learned_alone(facts: Facts, held_out: bool) -> str:
    """A sentence where not all devices did, for it takes long."""
    rows = shares.own_at(facts.measured, held_out=held_out).get(math.inf, [])
    alone = len(shares.known(facts.measured, rows, "alone"))
    return f" Of these {len(rows)}, {alone} learned alone." if 0 < alone < len(rows) else ""


def _wearers(seen: Sequence[Seen]) -> str:
    people = len({device.person for device in seen})
    return f"{some(len(seen), 'device', 'devices')} of {some(people, 'person', 'people')}"


def _ends(series: Series) -> str:
    return f"{series.points[0][1]:.1f} % to {series.points[-1][1]:.1f} %"


def _value_at(series: Series, at: int) -> str:
    return next((f"{value:.1f} % ± {error:.1f}" for place, value, error in series.points if place == at), "–")


def _percent_axis(series: Iterable[Series]) -> Axis:
    """From the ten below the lowest point to 100 %."""
    lows = [value - error for each in series for _, value, error in each.points]
    low = max(0, 10 * math.floor((min(lows, default=0) - 1) / 10))
    step = 10 if low >= 40 else 20
    return Axis("accuracy, %", low, 100, tuple((value, str(value)) for value in range(100, low - 1, -step)))
