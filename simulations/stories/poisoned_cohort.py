"""A poisoned cohort: a quarter of the nodes is hostile, and they talk to each other.

They are enrolled, hold their own keys, and sign what they send. Each attack is played against the default rule and
against the plain mean, in fleets that are alike in everything else, and once nobody attacks. The rounds are few, so
that nine fleets fit into a minute: ``python -m benchmarks.poison`` plays the default plan, and attacks that are not
survived.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.errors import TamperedError
from fleet.messages import Update, decode, encode
from fleet.settings import Settings
from fleet.signing import Sealed, sha256, unseal
from fleet.task import Recording, Windows
from node.agent import Agent
from node.client_app import Participant
from node.identity import read_identity
from node.outbox import Parcel
from simulations.script import Script
from simulations.stories.story import Figure, Story, accuracy
from simulations.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable

HOSTILE = 0.25
ROUNDS = 5
RELEASES_A_SESSION = 12
RULES = ("screened-mean", "mean")
TIMES_BACK, DEVIATIONS, TIMES_TURNED = 10.0, 1.5, 4.0
NOBODY, LABELS = "nobody", "label-flip"

Deltas = npt.NDArray[np.float64]  # a row a member of the gang
Delta = npt.NDArray[np.float64]
Judges = tuple[Windows, Windows]
Attack = Callable[[Deltas, int], Delta]


def sign_flip(deltas: Deltas, own: int) -> Delta:
    """Ten times the way back."""
    flipped: Delta = -TIMES_BACK * deltas[own]
    return flipped


def a_little(deltas: Deltas, own: int) -> Delta:
    """Off the mean, against its sign, by little more than honest nodes are anyway (Baruch et al. 2019, section 3)."""
    middle = deltas.mean(0)
    shifted: Delta = middle - DEVIATIONS * deltas.std(0) * np.sign(middle)
    return shifted


def inner_product(deltas: Deltas, own: int) -> Delta:
    """The mean, longer and turned around (Xie, Koyejo and Gupta 2019, section 4)."""
    turned: Delta = -TIMES_TURNED * deltas.mean(0)
    return turned


ATTACKS: dict[str, Attack | None] = {
    "sign-flip": sign_flip,
    "a-little-is-enough": a_little,
    "inner-product": inner_product,
    LABELS: None,  # its deltas are honest: its owner lies about the labels
}
STRENGTHS = {
    "sign-flip": (TIMES_BACK, "the own delta {:g} times, turned around"),
    "a-little-is-enough": (DEVIATIONS, "the gang's mean less {:g} standard deviations against its sign"),
    "inner-product": (TIMES_TURNED, "the gang's mean {:g} times, turned around"),
    LABELS: (1.0, "honest deltas, learned from the wrong labels"),
}


@dataclass(frozen=True, slots=True)
class Reached:
    """Accuracy of a fleet's newest base on the honest devices' later windows, and on people whom nobody had seen."""

    devices: float
    strangers: float


class Poison(Script):
    """One fleet whose last quarter is hostile, each node in the same way."""

    def __init__(self, attack: str, fleet: "Iterable[str]") -> None:
        names = sorted(fleet)
        self._hostile = set() if attack == NOBODY else set(names[-max(1, int(HOSTILE * len(names))) :])
        self._attack = ATTACKS.get(attack)
        self._labels = attack == LABELS
        self._gang: dict[str, Agent] = {}

    @property
    def hostile(self) -> set[str]:
        """Who is hostile."""
        return self._hostile

    def recordings(self, fleet: dict[str, Recording]) -> dict[str, Recording]:
        """With wrong labels to learn from, where that is the attack."""
        if not self._labels:
            return fleet
        top = max(int(recording.train.y.max()) for recording in fleet.values())
        return {name: _mislabelled(seen, top) if name in self._hostile else seen for name, seen in fleet.items()}

    def participant(self, agent: Agent, folder: Path) -> Participant:
        """A hostile owner reads the key from the device's disk, and answers in its place."""
        if agent.name not in self._hostile or self._attack is None:
            return agent
        self._gang[agent.name] = agent
        return Hostile(agent, _key(folder), self._gang, self._attack)


class Hostile:
    """Answers for a node: with the gang's deltas bent, and signed with the node's own key. Its reports are honest."""

    def __init__(self, agent: Agent, key: Ed25519PrivateKey, gang: dict[str, Agent], bent: Attack) -> None:
        self._agent = agent
        self._key = key
        self._gang = gang
        self._bent = bent

    def update(self, sealed: Sealed) -> Parcel | None:
        """The bent update, once the whole gang has learned."""
        honest = {name: agent.update(sealed) for name, agent in sorted(self._gang.items())}
        parcels = {name: parcel for name, parcel in honest.items() if parcel is not None}
        if len(parcels) < len(self._gang):
            return None
        deltas = np.stack([decode(p.payload, len(p.payload) // 4).astype(np.float64) for p in parcels.values()])
        payload = encode(self._bent(deltas, list(parcels).index(self._agent.name)).astype(np.float32))
        said = Update.of(unseal(Update.PURPOSE, parcels[self._agent.name].sealed, self._agent.public_key))
        return Parcel(replace(said, payload_digest=sha256(payload)).sealed(self._key), payload)

    def report(self, sealed: Sealed) -> Sealed | None:
        """What the node itself would say."""
        return self._agent.report(sealed)


class PoisonedCohort(Story):
    """The run's own fleet meets the loudest attack with the default rule; the others are played beside it."""

    name = "poisoned-cohort"
    title = "A poisoned cohort"
    fixed = frozenset({"rounds"})
    fewest = 8

    def __init__(self) -> None:
        self._poison = Poison(NOBODY, ())

    def settings(self, settings: Settings) -> Settings:
        """Few rounds, and one release at their end."""
        return settings.changed(
            privacy={"planned_releases": ROUNDS * RELEASES_A_SESSION},
            round={"rounds": ROUNDS, "aggregation": RULES[0]},
            release={"every_rounds": ROUNDS, "waves": (0.25, 1.0), "margin": 0.1},
        )

    def recordings(self, fleet: dict[str, Recording]) -> dict[str, Recording]:
        """The first of the attacks."""
        self._poison = Poison(next(iter(ATTACKS)), fleet)
        return self._poison.recordings(fleet)

    def participant(self, agent: Agent, folder: Path) -> Participant:
        """As that attack has it."""
        return self._poison.participant(agent, folder)

    def tell(self, world: World, held_out: dict[str, Recording]) -> tuple[list[str], dict[str, Figure]]:
        """Accuracy of every fleet's newest base: on the honest devices' later windows, and on people nobody knew."""
        fleet = {name: device.recording for name, device in world.devices.items()}
        honest = [seen.live for name, seen in fleet.items() if name not in self._poison.hostile]
        judges = (
            Windows.joined(honest),
            Windows.joined([part for seen in held_out.values() for part in (seen.train, seen.live)]),
        )
        ours = next(iter(ATTACKS)), RULES[0]
        reached = {
            (attack, rule): _newest(world, judges)
            if (attack, rule) == ours
            else _beside(world, attack, rule, fleet, judges)
            for attack, rule in [(NOBODY, RULES[0]), *product(ATTACKS, RULES)]
        }
        return self._sentences(len(fleet), reached)

    def _sentences(self, nodes: int, reached: dict[tuple[str, str], Reached]) -> tuple[list[str], dict[str, Figure]]:
        default, plain = RULES
        clean, hostile = reached.pop((NOBODY, default)), len(self._poison.hostile)
        left = {rule: {attack: reached[attack, rule].devices for attack in ATTACKS} for rule in RULES}
        strangers = min(reached[attack, default].strangers for attack in ATTACKS)
        figures: dict[str, Figure] = {"nodes": nodes, "hostile": hostile, "clean_accuracy": clean.devices}
        figures |= {"rounds": ROUNDS, "releases_a_round": RELEASES_A_SESSION}
        figures |= {f"{attack}_strength".replace("-", "_"): strength for attack, (strength, _) in STRENGTHS.items()}
        for (attack, rule), value in reached.items():
            figures[f"{attack}_{rule}_accuracy".replace("-", "_")] = value.devices
        figures |= {
            "most_points_lost_by_default": 100 * (clean.devices - min(left[default].values())),
            "most_points_lost_by_plain_mean": 100 * (clean.devices - min(left[plain].values())),
            "clean_accuracy_on_new_people": clean.strangers,
            "most_points_lost_by_default_on_new_people": 100 * (clean.strangers - strangers),
        }
        sent = "; ".join(f"{attack}, {what.format(strength)}" for attack, (strength, what) in STRENGTHS.items())
        both = "; ".join(f"{attack} {left[default][attack]:.0%} and {left[plain][attack]:.0%}" for attack in ATTACKS)
        better = sum(left[plain][attack] > left[default][attack] for attack in ATTACKS)
        told = [
            f"{hostile} of {nodes} nodes were hostile, with valid signatures, for {ROUNDS} rounds of "
            f"{RELEASES_A_SESSION} releases, and sent: {sent}. Without them the fleet is right on {clean.devices:.0%} "
            f"of the honest devices' later windows.",
            f"With the screened mean, the default, and with the plain mean, {both}: the plain mean was the better rule "
            f"in {better or 'none'} of {len(ATTACKS)}.",
            f"On people whom no device had seen, the default went from {clean.strangers:.0%} down to {strangers:.0%}: "
            f"what passes the screen, and is no copy, counts as much as any other node. A gang that hides what it has "
            f"in common under noise of its own costs the default far more: docs/accuracy.md has the figures.",
        ]
        return told, figures


def _beside(world: World, attack: str, rule: str, fleet: dict[str, Recording], judges: Judges) -> Reached:
    """What another fleet of the same devices reaches; it makes no releases."""
    settings = world.settings.changed(round={"aggregation": rule}, release={"every_rounds": ROUNDS + 1})
    poison = Poison(attack, fleet)
    other = World(
        world.folder / "beside" / f"{attack}-{rule}",
        world.task,
        settings,
        poison.recordings(fleet),
        seed=world.seed,
        started=time.monotonic(),
        script=poison,
    )
    other.play(lambda _: None)
    reached = _newest(other, judges)
    other.close()
    return reached


def _newest(world: World, judges: Judges) -> Reached:
    master = world.coordinator.bases.master(world.coordinator.bases.newest())
    return Reached(*(accuracy(world.task, master, judge) for judge in judges))


def _mislabelled(seen: Recording, top: int) -> Recording:
    return replace(seen, train=Windows(seen.train.x, top - seen.train.y))


def _key(folder: Path) -> Ed25519PrivateKey:
    identity = read_identity(folder)
    if identity is None:
        raise TamperedError(f"{folder} was never provisioned")
    return identity.key
