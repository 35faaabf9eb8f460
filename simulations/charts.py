"""Small charts as inline SVG: lines, bars, intervals and timelines, placed in percent so that text keeps its size.

Whatever text comes in is escaped. Colours are classes of the page, and never the only difference between two marks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

PLOT = 230  # pixels
BARS = 150
ROW = 24  # pixels of a row of a timeline
ENTRY = 64  # pixels of an entry of an interval chart
NARROW = 8.0  # percent of the width: a span below it has no room for its name
LONGEST_NAME = 15  # characters beside a timeline


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from ``low`` to ``high``, with a name that has the unit, and ticks as (value, text)."""

    name: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Where a value lies, in percent from the low end; what lies outside is put on the edge."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0) * 100


@dataclass(frozen=True, slots=True)
class Series:
    """Points ``(x, y, error)``, with a bar of one ``error`` up and down where it is not 0.

    ``look`` is a class of the page, its colour; ``mark`` is line, dash, dot, ring or square. Marks are moved aside by
    ``nudge`` pixels, so that those of two series do not hide each other.
    """

    name: str
    look: str
    mark: str
    points: tuple[tuple[float, float, float], ...]
    nudge: int = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between its bounds, or None where nothing was seen; ``note`` says what came of it."""

    name: str
    note: str
    look: str
    bounds: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a row; ``kind`` is solid, hatched or thin."""

    low: float
    high: float
    name: str
    look: str
    kind: str
    note: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of a timeline: its stretches, and moments as (time, character, note)."""

    name: str
    spans: tuple[Span, ...]
    moments: tuple[tuple[float, str, str], ...] = ()


def line_chart(title: str, description: str, series: Sequence[Series], *, x: Axis, y: Axis) -> Markup:
    """Series over an x axis, under their legend."""
    key = [_tag("li", _swatch(each), _tag("span", each.name)) for each in series]
    drawn = [part for each in series for part in _series(each, x, y)]
    return _tag("ul", *key, class_="key") + _svg(title, description, PLOT, "plot", [*_grid(x, y), *drawn])


def bar_chart(title: str, description: str, bars: Sequence[tuple[float, float, str]], *, x: Axis, y: Axis) -> Markup:
    """Upright bars ``(x, height, note)``."""
    width = 70 / max(1.0, x.high - x.low)
    drawn = [_bar(x.place(at) - width / 2, width, y.place(height), note) for at, height, note in bars]
    return _svg(title, description, BARS, "plot", [*_grid(x, y), *drawn])


def interval_chart(
    title: str, description: str, entries: Sequence[Interval], *, x: Axis, lines: Sequence[tuple[float, str, str]]
) -> Markup:
    """Estimates below each other with their bounds, across upright ``lines`` of (value, look, name)."""
    key = [_tag("li", _tag("span", "", class_=f"upright {look}"), _tag("span", name)) for _, look, name in lines]
    drawn = [part for index, entry in enumerate(entries) for part in _entry(entry, ENTRY * index, x, lines)]
    chart = _svg(title, description, ENTRY * len(entries), "plot bare", [*_below(x), *drawn])
    return _tag("ul", *key, class_="key") + chart


def timeline(title: str, description: str, lanes: Sequence[Lane], *, x: Axis) -> Markup:
    """Lanes below each other over one time axis."""
    grid = [_line("grid", x.place(value), 0, x.place(value), 100) for value, _ in x.ticks]
    drawn = [part for index, lane in enumerate(lanes) for part in _lane(lane, ROW * index, x)]
    return _svg(title, description, ROW * len(lanes), "plot named", [_hatch(), *grid, *_below(x), *drawn])


def axis_to(name: str, high: float) -> Axis:
    """From zero to ``high``, a tick at most every sixth of it, at round numbers."""
    high = max(high, 1)
    step = next(factor * 10**power for power in count() for factor in (1, 2, 3, 5) if factor * 10**power * 6 >= high)
    return Axis(name, 0, high, tuple((value, f"{value:,}") for value in range(0, int(high) + 1, step)))


def _tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element. Text among its children is escaped, and so is every attribute."""
    given = Markup("").join(Markup(' {}="{}"').format(key.rstrip("_"), value) for key, value in attributes.items())
    inside = Markup("").join(children)  # escapes what is not markup
    return Markup("<{0}{1}>{2}</{0}>").format(name, given, inside)


def _svg(title: str, description: str, height: int, look: str, parts: Sequence[Markup]) -> Markup:
    said = _tag("title", title), _tag("desc", description)
    label = {"aria-label": f"{title}. {description}"}
    return _tag("svg", *said, *parts, class_=look, role="img", height=height, **label)


def _text(look: str, x: str, y: str, words: str, **attributes: object) -> Markup:
    return _tag("text", words, class_=look, x=x, y=y, **attributes)


def _line(look: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return _tag("line", class_=look, x1=f"{x1:.2f}%", y1=f"{y1:.2f}%", x2=f"{x2:.2f}%", y2=f"{y2:.2f}%")


def _grid(x: Axis, y: Axis) -> Iterator[Markup]:
    for value, words in y.ticks:
        height = 100 - y.place(value)
        yield _line("grid", 0, height, 100, height)
        yield _text("tick left", "-8", f"{height:.2f}%", words, dy=".32em")
    yield _text("name", "0", "0", y.name, dx="-2.6em", dy="-1em")
    yield from _below(x)


def _below(x: Axis) -> Iterator[Markup]:
    for value, words in x.ticks:
        yield _text("tick", f"{x.place(value):.2f}%", "100%", words, dy="1.6em")
    yield _text("name middle", "50%", "100%", x.name, dy="3.2em")


def _series(series: Series, x: Axis, y: Axis) -> Iterator[Markup]:
    places = [(x.place(at), 100 - y.place(value)) for at, value, _ in series.points]
    if series.mark in ("line", "dash"):
        # Percentages are no points of a polyline: it is stretched over the plot by a box of its own.
        stroke = {"vector-effect": "non-scaling-stroke"}
        points = " ".join(f"{left:.2f},{top:.2f}" for left, top in places)
        line = _tag("polyline", points=points, class_=f"{series.mark} {series.look}", **stroke)
        yield _tag("svg", line, viewBox="0 0 100 100", preserveAspectRatio="none", class_="stretched")
    else:
        marks = [part for point in series.points for part in _marked(series, point, x, y)]
        yield _tag("g", *marks, transform=f"translate({series.nudge} 0)")


def _marked(series: Series, point: tuple[float, float, float], x: Axis, y: Axis) -> Iterator[Markup]:
    at, value, error = point
    if error:
        ends = 100 - y.place(value - error), 100 - y.place(value + error)
        yield _line(f"bound {series.look}", x.place(at), ends[0], x.place(at), ends[1])
    yield _point(series, f"{x.place(at):.2f}%", f"{100 - y.place(value):.2f}%")


def _point(series: Series, x: str, y: str) -> Markup:
    if series.mark == "square":
        return _tag("rect", x=x, y=y, width=8, height=8, transform="translate(-4 -4)", class_=f"fill {series.look}")
    if series.mark == "ring":
        return _tag("circle", cx=x, cy=y, r=8, class_=f"ring {series.look}")
    return _tag("circle", cx=x, cy=y, r=4, class_=f"fill {series.look}")


def _swatch(series: Series) -> Markup:
    if series.mark in ("line", "dash"):
        mark = _tag("line", x1=0, y1=6, x2=22, y2=6, class_=f"{series.mark} {series.look}")
    else:
        mark = _point(series, "11", "6")
    return _tag("svg", mark, width=22, height=12, class_="swatch", **{"aria-hidden": "true"})


def _bar(left: float, width: float, height: float, note: str) -> Markup:
    box = {"x": f"{left:.2f}%", "y": f"{100 - height:.2f}%", "width": f"{width:.2f}%", "height": f"{height:.2f}%"}
    return _tag("rect", _tag("title", note), class_="fill a", **box)


def _entry(entry: Interval, top: int, x: Axis, lines: Sequence[tuple[float, str, str]]) -> Iterator[Markup]:
    yield _text("entry", "0", str(top + 16), entry.name)
    yield _text("note", "0", str(top + 32), entry.note)
    y = top + 47
    yield from (_upright(f"rule {look}", x.place(value), y, 9) for value, look, _ in lines)
    if entry.bounds is None:
        return
    low, middle, high = entry.bounds
    ends = {"x1": f"{x.place(low):.2f}%", "x2": f"{x.place(high):.2f}%", "y1": y, "y2": y}
    yield _tag("line", class_=f"interval {entry.look}", **ends)
    for end, beyond, arrow in ((low, low < x.low, "‹"), (high, high > x.high, "›")):
        if beyond:
            yield _text(f"arrow {entry.look}", f"{x.place(end):.2f}%", str(y + 6), arrow)
        else:
            yield _upright(f"bound {entry.look}", x.place(end), y, 5)
    if x.low <= middle <= x.high:
        yield _tag("circle", cx=f"{x.place(middle):.2f}%", cy=y, r=5, class_=f"fill {entry.look}")


def _upright(look: str, place: float, y: int, reach: int) -> Markup:
    return _tag("line", class_=look, x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=y - reach, y2=y + reach)


def _lane(lane: Lane, top: int, x: Axis) -> Iterator[Markup]:
    short = lane.name if len(lane.name) <= LONGEST_NAME else lane.name[: LONGEST_NAME - 1] + "…"
    yield _text("tick left", "-8", str(top + 14), short)
    for span in lane.spans:
        yield from _span(span, top, x)
    for at, character, note in lane.moments:
        yield _tag("text", _tag("title", note), character, class_="moment", x=f"{x.place(at):.2f}%", y=top + 15)


def _span(span: Span, top: int, x: Axis) -> Iterator[Markup]:
    left, width = x.place(span.low), x.place(span.high) - x.place(span.low)
    thin = span.kind == "thin"
    box = {"x": f"{left:.2f}%", "width": f"{width:.2f}%", "y": top + (18 if thin else 3), "height": 3 if thin else 14}
    yield _tag("rect", _tag("title", span.note), class_=f"fill {span.look}", **box)
    if span.kind == "hatched":
        yield _tag("rect", fill="url(#hatch)", **{"pointer-events": "none"}, **box)
    elif not thin and width >= NARROW:
        yield _text("inside", f"{left:.2f}%", str(top + 14), span.name, dx=5)


def _hatch() -> Markup:
    stripe = _tag("line", x1=0, y1=0, x2=0, y2=6, class_="stripe")
    pattern = _tag(
        "pattern", stripe, id="hatch", width=6, height=6, patternUnits="userSpaceOnUse", patternTransform="rotate(45)"
    )
    return _tag("defs", pattern)
