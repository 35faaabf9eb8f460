"""``report.html``: one page on a run, for a person who looks and for a sceptic who checks.

It is a function of what the run left in its folder, and needs nothing but itself: no script, no font, no request.
"""

import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from coordinator.rollout import RUNNING, Phase
from fleet import durable
from simulations import facts as left
from simulations import figures, rollouts, shares
from simulations.facts import Facts
from simulations.figures import some
from simulations.measurement import Seen, Spent

FILE = "report.html"

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(folder: Path) -> Path:
    """Write the report of the run in ``folder``; where it is."""
    path = folder / FILE
    durable.write(path, page(left.read(folder)).encode())
    return path


def page(facts: Facts) -> str:
    """The whole page. Names and reasons that nodes gave are escaped like everything else."""
    return _TEMPLATES.get_template(FILE).render(
        title=facts.story.title if facts.story else f"A fleet of {facts.result['nodes']} devices learns together",
        told=facts.story.told if facts.story else told(facts),
        story=facts.story,
        facts=facts,
        result=facts.result,
        private=_private(facts),
        headlines=_headlines(facts),
        accuracy=[figures.accuracy(facts, held_out=held_out) for held_out in (True, False)],
        without_the_fleet=_without_the_fleet(facts),
        labels=[figures.labels(facts, held_out=held_out) for held_out in (True, False)],
        crossovers=_crossovers(facts),
        epsilon=figures.epsilon(facts),
        answering=rollouts.answering(facts),
        evidence=rollouts.evidence(facts),
        still_running=[release.number for release in facts.releases if release.phase in RUNNING],
        updates=figures.updates(facts),
        traffic=_traffic(facts),
        nodes=_nodes(facts),
    )


def told(facts: Facts) -> list[str]:
    """What happened, in three sentences."""
    result = facts.result
    devices, rounds = some(result["nodes"], "device", "devices"), some(result["rounds"], "round", "rounds")
    return [
        f"{devices} learned together for {rounds} in {facts.hours:.0f} simulated hours, and no reading left its "
        f"device: {result['updates']} updates were counted and {result['refused']} refused.",
        f"On people who took no part, the newest release that every node may serve is right on "
        f"{_percent(result['new_device_accuracy'])} of windows, where release 0, which no device had part in, is "
        f"right on {_percent(result['donor_accuracy'])}; on the fleet's own later windows it is right on "
        f"{_percent(result['same_device_accuracy'])}.",
        f"{_rolled_out(facts)}; {some(result['nodes_exposed'], 'device', 'devices')} answered with a release that was "
        f"taken back, {result['nodes_unsigned']} with unsigned weights, and {_cost(facts)}.",
    ]


def _rolled_out(facts: Facts) -> str:
    trained = [release for release in facts.releases if release.number and not release.withdraws]
    ended = [
        (sum(release.phase is phase for release in trained), words)
        for phase, words in ((Phase.DONE, "served by all"), (Phase.KEPT_OLD, "kept back"), (Phase.HALTED, "withdrawn"))
    ]
    running = sum(release.phase in RUNNING for release in trained)
    parts = [f"{number} {words}" for number, words in [*ended, (running, "still on its way")] if number]
    offered = some(len(trained), "trained release was offered", "trained releases were offered")
    return f"{offered} ({', '.join(parts)})" if parts else offered


def _private(facts: Facts) -> bool:
    return math.isfinite(facts.settings.privacy.epsilon)


def _cost(facts: Facts) -> str:
    spent = facts.result["epsilon_max"]
    if not _private(facts) or spent is None:
        return "nothing was promised about privacy: there was no noise"
    return f"no unit ({facts.result['unit']}) cost more than ε = {spent:.2f} at δ = {facts.result['delta']:g}"


def _headlines(facts: Facts) -> list[tuple[str, str, str]]:
    """Each a figure, what it is, and what to hold it against."""
    result, alone = facts.result, None if _on_whom(facts) else shares.own_models(facts.measured, "alone")
    private = _private(facts) and result["epsilon_max"] is not None
    return [
        (
            _percent(result["new_device_accuracy"]),
            "right on new devices",
            f"release 0: {_percent(result['donor_accuracy'])}",
        ),
        (
            _percent(result["same_device_accuracy"]),
            "right on the fleet's later windows",
            f"each device alone: {alone}" if alone else "none was learned from",
        ),
        (
            f"{result['epsilon_max']:.2f}" if private else "none",
            "ε of one unit" if private else "privacy",
            f"at δ = {result['delta']:g}" if private else "a run without noise",
        ),
        (
            f"{result['nodes_promoted']} of {result['nodes']}",
            "end on a trained release",
            f"{result['nodes_exposed']} met one taken back",
        ),
        (_percent(result["float_agreement"]), "int8 agrees with float32", "windows named alike"),
        (f"{result['answers']:,}", "windows answered", f"{result['nodes_unsigned']} nodes with unsigned weights"),
    ]


def _without_the_fleet(facts: Facts) -> list[str]:
    """Whether the fleet's model is worth having, said as it is, also where it is not."""
    measured = shares.among_equals(facts.measured)
    exact = [shares.by_base(measured, "float32", held_out=held_out) for held_out in (False, True)]
    same, new = (by_base[max(by_base)] for by_base in exact)
    alone, personal = (shares.own_models(measured, which) for which in ("alone", "personal"))
    lent = shares.lent(facts.measured)
    said = []
    if alone:
        verdict = "there it is better off alone" if alone.value > same.value else "there the fleet helps even it"
        said.append(
            f"Where a device has all its labels, and for its own wearer, learning alone is right on {alone} of later "
            f"windows and the fleet's last base on {same}{_on_whom(facts)}: {verdict}."
        )
    if personal:
        of_these = " of the same windows" if alone else ""
        said.append(
            f"The last base with a head of the device's own, which never leaves it, is right on {personal}{of_these}."
        )
    rivals = {"base 0": exact[1][0]} | ({"the model of one other device": lent} if lent else {})
    better = [name for name, share in rivals.items() if share.value >= new.value]
    verdict = f"no better than {_listed(better)}" if better else "the difference is what federating is for"
    beside = " and ".join(f"{name} on {share}" for name, share in rivals.items())
    said.append(f"For people who took no part, the fleet's last base is right on {new}, {beside}: {verdict}.")
    return said


def _on_whom(facts: Facts) -> str:
    """Which devices learned alone, where those are not all."""
    learned, of = (
        sum(not device.held_out for device in measured.seen)
        for measured in (shares.among_equals(facts.measured), facts.measured)
    )
    return "" if learned == of else f", on the {learned} of {of} devices that learned alone"


def _crossovers(facts: Facts) -> list[str]:
    """How many labels it takes until a device no longer gains by the fleet, and where tuning does harm."""
    said = []
    for who, held_out in (("new devices", True), ("devices of the fleet", False)):
        pays, harms = figures.fleet_pays(facts, held_out=held_out), figures.tuning_harms(facts, held_out=held_out)
        ahead, behind = (_listed([step for step, won in pays if won is which]) for which in (True, False))
        if ahead:
            other = f", and no longer with {behind}" if behind else ""
            said.append(f"On {who} the fleet's base is a better start than none with {ahead} labelled windows{other}.")
        elif behind:
            said.append(f"On {who} the fleet's base is no better a start than none with {behind} labelled windows.")
        if harms:
            said.append(f"On {who}, tuning on {_listed(harms)} labelled windows is worse than leaving it as it is.")
    return said


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _traffic(facts: Facts) -> list[tuple[str, float, int]]:
    """What travelled: its name, bytes of one, and how often."""
    result = facts.result
    return [
        ("an update up: delta, signed fields, signature", result["bytes_up_per_update"], result["updates"]),
        ("a base down: int8 weights, manifest, fresh metadata", result["bytes_down_per_base"], facts.bases_down),
    ]


def _nodes(facts: Facts) -> list[tuple[Seen, Spent | None]]:
    """Each device of the fleet, with its ledger."""
    ledgers = {row.device: row for row in facts.measured.spent}
    return [(seen, ledgers.get(seen.device)) for seen in facts.measured.seen if not seen.held_out]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"
