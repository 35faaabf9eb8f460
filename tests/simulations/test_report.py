"""The report: everything on it, nothing leaves it, and what nodes say stays text."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from coordinator.rollout import Phase
from coordinator.round import RoundState
from fleet.settings import Settings
from simulations import figures, rollouts
from simulations.facts import Event, Facts, Offered, PlayedRound, Story
from simulations.measurement import Judged, Lent, Measurements, Own, Seen, Spent
from simulations.report import page, told
from tests.simulations.browser import COLUMNS, Layout, browsed, coloured, contrast, laid_out, needs_browser

HOSTILE = "<script>alert('1')</script>\" onload=\"steal()"
SECTIONS = {"happened", "accuracy", "labels", "privacy", "releases", "evidence", "bytes", "nodes", "simulated"}
VOID = {"meta", "br", "img", "link", "input", "hr"}
LOADS = {"src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background", "ping"}
MIB = 2**20


def facts(*, nodes: int = 3, epsilon: float = 8.0, rounds: int = 4, story: Story | None = None) -> Facts:
    """A small fleet, whose first node has a hostile name and gives a hostile reason."""
    names = [HOSTILE, *(f"device{i:02d}" for i in range(1, nodes))]
    private = epsilon < float("inf")
    events = [
        Event(0, name, stage, {"release": 0, "reason": "provisioned"})
        for name in names
        for stage in ("probation", "committed")
    ]
    events += [Event(2, name, "shadow", {"release": 1, "reason": "admitted"}) for name in names]
    events += [Event(3, names[0], "rejected", {"release": 1, "reason": HOSTILE})]
    events += [Event(3, name, "probation", {"release": 1, "reason": "its wave opened"}) for name in names[1:]]
    events += [
        Event(3, "coordinator", "rollout", judged)
        for judged in (
            {"release": 1, "judged": "shadow", "phase": "wave", "wave": 1, "reports": 3, "gain": 0.1, "error": 0.04},
            {"release": 1, "judged": "wave 1", "phase": "halted", "wave": 1, "reports": 0, "gain": 0.0, "error": None},
            {"release": 1, "phase": "halted", "reason": "withdrawn by the operator"},
        )
    ]
    seen = [Seen(name, f"person of {name}", False, 60, 20, 20, rounds, 4000 * rounds) for name in names]
    seen += [Seen("new", "stranger", True, 60, 20)]
    judged = [
        Judged(base, precision, dict.fromkeys([*names, "new"], min(20, 10 + base)))
        for base in range(rounds + 1)
        for precision in ("float32", "int8")
    ]
    own = [
        Own(name, labels, None if labels == 0 else 12 + labels // 10, 13 + labels // 12)
        for name in [*names, "new"]
        for labels in (0, 5, 20, 60)
    ]
    result = {
        "task": "task", "seed": 1, "new_device_accuracy": 0.8, "same_device_accuracy": 0.79, "float_agreement": 0.99,
        "donor_accuracy": 0.7, "epsilon_max": epsilon if private else None, "delta": 1e-5, "unit": "window",
        "rounds": rounds, "updates": nodes * rounds, "refused": 1, "releases": 2, "nodes": nodes,
        "nodes_promoted": nodes - 1, "nodes_exposed": 0, "nodes_unsigned": 0, "answers": 20 * nodes,
        "bytes_up_per_update": 4000.0, "bytes_down_per_base": 7000.0, "first_promotion_s": 1.0, "wall_s": 2.0,
    }  # fmt: skip
    return Facts(
        result=result,
        settings=Settings().changed(privacy={"epsilon": epsilon}),
        bases_down=nodes * (rounds + 1),
        hours=6.0,
        began=tuple(range(7)),
        rounds=tuple(PlayedRound(n, n - 1, RoundState.CLOSED, nodes, int(n == 2)) for n in range(1, rounds + 1)),
        releases=(
            Offered(0, 0, 0, Phase.DONE, 0, 8, 2),
            Offered(1, 2, 0, Phase.HALTED, 1, 8, 2),
            Offered(2, 0, 1, Phase.DONE, 0, 8, 2),
        ),
        events=tuple(events),
        measured=Measurements(
            seen=tuple(seen),
            judged=tuple(judged),
            own=tuple(own),
            lent=tuple(Lent(name, 30) for name in names),
            spent=tuple(
                Spent(name, [epsilon * n / rounds if private else None for n in range(1, rounds + 1)], 1, None)
                for name in names
            ),
        ),
        story=story,
        built_in=True,
    )


class Outline(HTMLParser):
    """Tags and attributes of a page; that every tag is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "tags are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def leaving(html: str) -> list[str]:
    """Whatever in a page would ask for something outside of it, or run."""
    outline = Outline(html)
    found = [
        tag for tag, _ in outline.tags if tag in {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
    ]
    for tag, attributes in outline.tags:
        found += [f"{tag} {name}={value}" for name, value in attributes.items() if name.startswith("on")]
        found += [f"{tag} {n}={v}" for n, v in attributes.items() if n in LOADS and not (v or "").startswith("#")]
        found += [f"{tag} {v}" for v in attributes.values() if "url(" in (v or "") and "url(#" not in (v or "")]
    styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    return found + re.findall(r"url\([^#].*?\)|@import.*|https?://\S+", styles)


@pytest.mark.parametrize("epsilon", [8.0, float("inf")])
def test_every_section_is_there_and_nothing_leaves_the_page(epsilon: float) -> None:
    html = page(facts(epsilon=epsilon))
    outline = Outline(html)
    assert {attributes.get("id") for _, attributes in outline.tags} >= SECTIONS
    assert leaving(html) == []
    policy = [
        a["content"] for tag, a in outline.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


@pytest.mark.parametrize(
    "planted",
    [
        "<script>1</script>",
        '<img src="data:,">',
        '<a href="https://example.org">x</a>',
        '<p onclick="x()">x</p>',
        '<svg><use href="//example.org/x"></use></svg>',
        '<style>@import "x.css";</style>',
        "<style>p { background: url(https://example.org/x) }</style>",
        '<p style="background: url(x.png)">x</p>',
    ],
)
def test_the_check_sees_what_would_leave(planted: str) -> None:
    assert leaving(page(facts()).replace("</main>", planted + "</main>"))


def test_what_nodes_say_stays_text() -> None:
    html = page(facts(story=Story(HOSTILE, (HOSTILE,), {HOSTILE: HOSTILE})))
    assert "<script" not in html
    assert 'steal()"' not in html
    assert Outline(html).words.count(HOSTILE) >= 5


def test_a_big_fleet_and_a_long_run_stay_under_two_megabytes() -> None:
    html = page(facts(nodes=300, rounds=200))
    assert len(html.encode()) < 2 * MIB
    assert "260 more nodes are not drawn" in html


def test_the_same_facts_give_the_same_page() -> None:
    assert page(facts()) == page(facts())


def test_every_chart_says_what_it_shows() -> None:
    plots = [a for tag, a in Outline(page(facts())).tags if tag == "svg" and a.get("role") == "img"]
    assert len(plots) == 8
    assert all(len(attributes["aria-label"] or "") > 30 for attributes in plots)


def test_what_happened_is_told_in_three_sentences() -> None:
    sentences = told(facts())
    assert len(sentences) == 3
    assert "12 updates were counted and 1 refused" in sentences[0]
    assert "80.0\u00a0%" in sentences[1]
    assert "1 trained release was offered (1 withdrawn)" in sentences[2]
    assert "ε = 8.00 at δ = 1e-05" in sentences[2]
    assert "This run had no privacy" in page(facts(epsilon=float("inf")))
    assert "nothing was promised" in told(facts(epsilon=float("inf")))[2]


def test_what_went_down_is_as_many_bases_as_were_pulled() -> None:
    assert re.search(r"a base down: [^<]*</td><td>7,000</td><td>15</td>", page(facts(nodes=3, rounds=4)))


def test_a_story_is_told_in_place_of_the_three_sentences() -> None:
    words = Outline(page(facts(story=Story("A bad release", ("It was vetoed.",), {"nodes exposed": 0})))).words
    assert "A bad release" in words
    assert "It was vetoed." in words
    assert "nodes exposed" in words
    assert "no reading left its device" not in words


def test_it_is_said_when_a_device_is_better_off_alone() -> None:
    given = facts()
    better = replace(given.measured, own=tuple(replace(row, alone=20) for row in given.measured.own))
    worse = replace(given.measured, own=tuple(replace(row, alone=1) for row in given.measured.own))
    assert "better off alone" in page(replace(given, measured=better))
    assert "better off alone" not in page(replace(given, measured=worse))


def test_where_few_devices_learned_alone_the_fleet_is_held_against_them_on_the_same_devices() -> None:
    given = facts()  # of the last base each device has 14 of 20
    lucky = {"device01": 20, "device02": 20}
    judged = [replace(row, right=row.right | lucky) for row in given.measured.judged]
    own = [
        replace(row, alone=None, personal=20) if row.device in lucky else replace(row, alone=row.alone and 16)
        for row in given.measured.own
    ]
    few = replace(given, measured=replace(given.measured, judged=tuple(judged), own=tuple(own)))
    assert figures.fleet_pays(few, held_out=False) == [("5", False), ("20", False), ("all", True)]
    words = Outline(page(few)).words
    assert "is right on 80.0\u00a0% of later windows and the fleet's last base on 70.0\u00a0%, on the 1 of" in words
    assert "of 3 devices that learned alone: there it is better off alone." in words
    assert "which never leaves it, is right on 90.0\u00a0% of the same windows." in words
    assert "each device alone: 80.0\u00a0%" not in words.split("Accuracy by round")[0], "the headline is of all devices"
    assert "devices that learned alone" not in Outline(page(given)).words


@pytest.mark.parametrize(
    ("last", "lent", "verdict"),
    [
        pytest.param(14, 5, "the difference is what federating is for", id="better than both"),
        pytest.param(5, 4, "no better than base 0", id="base 0 was better"),
        pytest.param(14, 16, "no better than the model of one other device", id="one device was better"),
        pytest.param(5, 16, "no better than base 0 and the model of one other device", id="both were better"),
    ],
)
def test_it_is_said_when_people_who_took_no_part_got_nothing(last: int, lent: int, verdict: str) -> None:
    given = facts()  # base 0 is right on 10 of 80 windows
    judged = [replace(row, right=row.right | {"new": last}) if row.base == 4 else row for row in given.measured.judged]
    measured = replace(given.measured, judged=tuple(judged), lent=(Lent("device01", lent),))
    words = Outline(page(replace(given, measured=measured))).words
    said = (
        f"For people who took no part, the fleet's last base is right on {100 * last / 80:.1f}\u00a0%, base 0 on 12.5"
    )
    assert said in words
    assert f"{100 * lent / 80:.1f}\u00a0%: {verdict}." in words


def test_the_chart_of_new_devices_has_base_0_as_a_line() -> None:
    new, same = (figures.accuracy(facts(), held_out=held_out).chart for held_out in (True, False))
    assert "base 0: 12.5\u00a0%" in new
    assert "base 0:" not in same


def test_a_timeline_whose_clock_jumped_is_drawn_by_played_hours_and_says_so() -> None:
    months = replace(facts(), hours=2162.0, began=(0, 1, 2, 722, 1442, 2162))
    figure = rollouts.answering(months)
    ticks = re.findall(r'class="tick" x="([\d.]+)%"[^>]*>([\d,]+)<', figure.chart)
    assert ticks == [("0.00", "0"), ("40.00", "2"), ("60.00", "722"), ("100.00", "2,162")]
    assert "From hour 2 on, the hours that were played lie far apart." in figure.caption
    assert "lie far apart" not in rollouts.answering(facts()).caption


def test_the_evidence_says_both_ways_in_which_a_wave_halts() -> None:
    figure = rollouts.evidence(facts())
    assert figure
    assert "A wave halts if its evidence lies that far left of the margin" in figure.caption
    assert "fewer than half of its nodes have reported when patience is over" in figure.caption


def test_the_evidence_names_each_stage_that_was_judged_and_leaves_out_what_an_operator_did() -> None:
    figure = rollouts.evidence(facts())
    assert figure
    shadow, wave = (name for name, _ in figure.rows)
    assert shadow.startswith("R1 shadow: 3 reports, ")
    assert wave.startswith("R1 wave 1: 0 reports, ")


def test_a_run_that_measured_no_model_of_its_own_has_a_report_all_the_same() -> None:
    given = facts()
    none = tuple(replace(row, alone=None, personal=None) for row in given.measured.own)
    html = page(
        replace(given, measured=replace(given.measured, own=none, lent=()), events=(), releases=given.releases[:1])
    )
    assert "No release was judged" in html
    assert leaving(html) == []


def test_it_is_said_when_tuning_does_harm_and_when_few_devices_learned_alone() -> None:
    given = facts()
    own = [replace(row, personal=15 if row.labels == 0 else 3, alone=None) for row in given.measured.own]
    own = [replace(row, alone=9) if row.device == "device01" and row.labels == 60 else row for row in own]
    html = page(replace(given, measured=replace(given.measured, own=tuple(own))))
    assert "On new devices, tuning on 5, 20 and all labelled windows is worse than leaving it as it is" in html
    assert "Of these 3, 1 learned alone" in html
    assert "learned alone." not in page(given)


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_it_and_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(facts()), encoding="utf-8")
    shown, asked = browsed(tmp_path, "report.html")
    assert all(f'id="{section}"' in shown for section in SECTIONS)
    assert asked == []


@pytest.mark.slow
@needs_browser
def test_the_policy_stops_what_the_parser_might_miss(tmp_path: Path) -> None:
    image = '<img src="http://127.0.0.1:9/x.png">'
    guarded = page(facts()).replace("</main>", f"{image}</main>")
    (tmp_path / "guarded.html").write_text(guarded, encoding="utf-8")
    (tmp_path / "bare.html").write_text(re.sub("<meta http-equiv.*?>", "", guarded), encoding="utf-8")
    assert browsed(tmp_path, "guarded.html")[1] == []
    assert browsed(tmp_path, "bare.html")[1] == ["http://127.0.0.1:9/x.png"], "or else nothing is seen at all"


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", COLUMNS)
def test_nothing_sticks_out_at_the_side_and_no_tick_lies_on_another(tmp_path: Path, width: int) -> None:
    (tmp_path / "report.html").write_text(page(facts()), encoding="utf-8")
    assert laid_out(tmp_path, "report.html", width) == Layout(width, COLUMNS[width])


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(251, 250, 247)"), ("dark", "rgb(20, 23, 26)")])
def test_text_and_lines_can_be_told_from_what_they_are_drawn_on(tmp_path: Path, scheme: str, background: str) -> None:
    (tmp_path / "report.html").write_text(page(facts()), encoding="utf-8")
    colours = coloured(tmp_path, "report.html", scheme)
    assert colours.pop("body") == background
    ground, card, ink, soft = (colours.pop(name) for name in ("page", "card", "ink", "soft"))
    assert min(contrast(text, under) for text in (ink, soft) for under in (ground, card)) >= 4.5
    assert {name for name, colour in colours.items() if contrast(colour, card) < 3} == set()


@pytest.mark.slow
@needs_browser
def test_the_browser_sees_ticks_that_lie_on_each_other(tmp_path: Path) -> None:
    html = page(facts()).replace('class="tick"', 'class="tick" textLength="200"')
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    assert laid_out(tmp_path, "report.html", 390).collisions


@pytest.mark.parametrize("built_in", [True, False])
def test_the_page_says_what_was_tuned_on_whom_of_the_built_in_task_only(built_in: bool) -> None:
    said = page(replace(facts(), built_in=built_in))
    assert ("tuned on" in said) is built_in
    assert "Nothing here was tuned" not in said
