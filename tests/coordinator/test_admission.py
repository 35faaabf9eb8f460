"""A bad reply is refused with its code and changes no bit of the round's aggregate."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from coordinator.admission import Member, Rules, admit, admit_report
from coordinator.round import Round, RoundState
from coordinator.rounds import BaseRow
from fleet.errors import RefusedError
from fleet.messages import CODEC, Report, ReportInstruction, Update, Watch, encode, update_key
from fleet.quantization import Template
from fleet.signing import MAX_BODY_BYTES, Sealed, canonical, seal, sha256
from fleet.weights import Flat
from tests.coordinator.conftest import NOW, SETTINGS, SIZE, Fleet, Sent, delta_of, key_of

MALLORY, STRANGER, REVOKED = key_of("mallory"), key_of("stranger"), key_of("revoked")


@dataclass(frozen=True)
class Scene:
    """What mallory knows: what it would honestly say, the bases, and what it said a round ago."""

    honest: Update
    delta: Flat
    bases: dict[int, str]
    before: Sent

    def __call__(self, delta: Flat | None = None, *, by: Ed25519PrivateKey = MALLORY, **changes: Any) -> Sent:
        """A reply that is honest but for what is said; its key and the digest of its payload fit."""
        payload = encode(self.delta if delta is None else delta)
        update = replace(self.honest, payload_digest=sha256(payload))
        update = replace(update, **{name: value for name, value in changes.items() if name != "key"})
        key = update_key(update.node, update.task, update.round, update.base_digest)
        return Sent(replace(update, key=changes.get("key", key)).sealed(by), payload)

    def signed(self, body: bytes) -> Sent:
        """Any bytes, under the hostile node's own signature."""
        return Sent(Sealed(body, MALLORY.sign(b"edgefleet/update\0" + body)), encode(self.delta))

    def fields(self, **changes: Any) -> bytes:
        return json.dumps({**self.honest.fields(), "v": 1, **changes}).encode()

    def body(self, body: bytes) -> Sent:
        """Any bytes, under a signature that fits others."""
        return Sent(Sealed(body, self().sealed.signature), encode(self.delta))


def spoiled(scene: Scene, value: float) -> Sent:
    delta = scene.delta.copy()
    delta[3] = value
    return scene(delta)


Attack = Callable[[Scene], Sent]
ATTACKS: dict[str, tuple[str, Attack]] = {
    "unknown node": ("unknown-node", lambda s: s(by=STRANGER, node="stranger")),
    "unknown node with half a letter in its name": ("unknown-node", lambda s: s.signed(s.fields(node="\ud800"))),
    "revoked": ("revoked", lambda s: s(by=REVOKED, node="revoked")),
    "signed by another node": ("signature", lambda s: s(node="node-0")),
    "body altered": (
        "signature",
        lambda s: s.body(s().sealed.body.replace(b'"spent_mu2":1', b'"spent_mu2":2')),
    ),
    "body of another update": ("signature", lambda s: s.body(s(spent_mu2=2).sealed.body)),
    "signed for another purpose": ("signature", lambda s: Sent(seal("report", s.honest.fields(), MALLORY), b"")),
    "another protocol": ("signature", lambda s: s.signed(s.fields(v=2))),
    "unsigned": ("signature", lambda s: Sent(Sealed(s().sealed.body, b""), encode(s.delta))),
    "signature too long": ("signature", lambda s: Sent(Sealed(s().sealed.body, b"x" * 65), encode(s.delta))),
    "empty": ("signature", lambda s: Sent(Sealed(b"", b""), b"", "")),
    "no JSON": ("signature", lambda s: s.body(b"\x80\x04K\x01.")),
    "no object": ("signature", lambda s: s.body(b'["node"]')),
    "nameless": ("signature", lambda s: s.body(b"{}")),
    "a name that is no text": ("signature", lambda s: s.body(b'{"node":["mallory"]}')),
    "JSON bomb": ("signature", lambda s: s.body(b'{"node":' + b"[" * 16_000)),
    "JSON bomb under a good signature": ("signature", lambda s: s.signed(b'{"node":"mallory","v":' + b"[" * 16_000)),
    "number of 5000 digits": ("signature", lambda s: s.signed(b'{"node":"mallory","v":' + b"9" * 5000 + b"}")),
    "body too long": ("signature", lambda s: s.signed(s.fields(ledger_head="0" * MAX_BODY_BYTES))),
    "field missing": ("signature", lambda s: s.signed(canonical({"node": "mallory", "v": 1}))),
    "number as text": ("signature", lambda s: s.signed(s.fields(round=str(s.honest.round)))),
    "truth as number": ("signature", lambda s: s.signed(s.fields(spent_mu2=True))),
    "number over 63 bits": ("signature", lambda s: s.signed(s.fields(ledger_seq=2**63))),
    "NaN as number": ("signature", lambda s: s.signed(s.fields(ledger_seq=float("nan")))),
    "other task": ("task", lambda s: s(task="other")),
    "half a letter as task": ("task", lambda s: s.signed(s.fields(task="\ud800"))),
    "wrong round": ("round", lambda s: s(round=s.honest.round + 1)),
    "replay of an older round's update": ("round", lambda s: s.before),
    "wrong base digest": ("base", lambda s: s(base_digest="0" * 64)),
    "digest of another base": ("base", lambda s: s(base_digest=s.bases[s.honest.base - 1])),
    "unknown base": ("base", lambda s: s(base=99)),
    "negative base": ("base", lambda s: s(base=-1, base_digest=s.bases[s.honest.base])),
    "stale": ("stale", lambda s: s(base=0, base_digest=s.bases[0])),
    "wrong key": ("key", lambda s: s(key="0" * 64)),
    "key of another round": (
        "key",
        lambda s: s(key=update_key("mallory", s.honest.task, s.honest.round - 1, s.honest.base_digest)),
    ),
    "ledger going back": ("ledger", lambda s: s(ledger_seq=s.honest.ledger_seq - 11)),
    "nothing charged": ("ledger", lambda s: s(spent_mu2=0)),
    "something given back": ("ledger", lambda s: s(spent_mu2=-1)),
    "wrong codec signed": ("codec", lambda s: s(codec="fleet.pickle.v1")),
    "wrong codec carried": ("codec", lambda s: replace(s(), codec="numpy.ndarray")),
    "half a letter as codec": ("codec", lambda s: replace(s(), codec="\ud800")),
    "oversized": ("oversized", lambda s: replace(s(), payload=b"\0" * (4 * SIZE + 1))),
    "oversized and signed": ("oversized", lambda s: s(np.zeros(SIZE + 1, np.float32))),
    "short": ("layout", lambda s: s(s.delta[:-1])),
    "one byte short": (
        "layout",
        lambda s: replace(s(payload_digest=sha256(encode(s.delta)[:-1])), payload=encode(s.delta)[:-1]),
    ),
    "no payload": ("layout", lambda s: s(np.zeros(0, np.float32))),
    "payload not the signed one": ("payload", lambda s: replace(s(), payload=encode(2 * s.delta))),
    "payload lost": ("payload", lambda s: replace(s(), payload=b"")),
    "NaN": ("not-finite", lambda s: spoiled(s, np.nan)),
    "infinite": ("not-finite", lambda s: spoiled(s, np.inf)),
    "minus infinite": ("not-finite", lambda s: spoiled(s, -np.inf)),
    "norm too long": ("norm", lambda s: spoiled(s, 50)),
    "norm beyond float32": ("norm", lambda s: s(np.full(SIZE, 3e38, np.float32))),
}
attacks = pytest.mark.parametrize(("code", "attack"), ATTACKS.values(), ids=ATTACKS)


# the pure check


ROUND = Round(number=4, base=3, state=RoundState.OPEN, opened=NOW, deadline=NOW)
BASES = {number: f"{number:064x}" for number in range(5)}  # base 4 is newer than the round's
RULES = Rules(task="tiny", size=SIZE, max_norm=5.0, max_staleness=2, bases=BASES)
MEMBERS = {
    "mallory": Member("mallory", MALLORY.public_key(), revoked=False, ledger_seq=30),
    "node-0": Member("node-0", STRANGER.public_key(), revoked=False, ledger_seq=0),
    "revoked": Member("revoked", REVOKED.public_key(), revoked=True, ledger_seq=0),
}


def honest(round_: int = 4, base: int = 3) -> Scene:
    delta = np.linspace(-0.1, 0.1, SIZE, dtype=np.float32)
    digest = BASES[base]
    key = update_key("mallory", "tiny", round_, digest)
    update = Update(
        "mallory", "tiny", round_, base, digest, key, CODEC, sha256(encode(delta)), 1, 10 * round_, "0" * 64
    )
    before = replace(update, round=3, key=update_key("mallory", "tiny", 3, digest)).sealed(MALLORY)
    return Scene(update, delta, BASES, Sent(before, encode(delta)))


def judged(bad: Sent, rules: Rules = RULES) -> Any:
    return admit(bad.sealed, bad.payload, codec=bad.codec, member=MEMBERS.get, round_=ROUND, rules=rules)


@attacks
def test_a_bad_update_is_refused_with_its_code(code: str, attack: Attack) -> None:
    with pytest.raises(RefusedError) as refused:
        judged(attack(honest()))
    assert refused.value.code == code


def test_an_honest_update_is_admitted_with_its_delta_and_its_norm() -> None:
    scene = honest()
    admitted = judged(scene())
    assert admitted.update == scene.honest
    assert admitted.delta.dtype == np.float32
    np.testing.assert_array_equal(admitted.delta, scene.delta)
    assert admitted.norm == pytest.approx(float(np.linalg.norm(scene.delta.astype(np.float64))), rel=1e-12)


@pytest.mark.parametrize("base", [1, 2, 3])
def test_a_delta_from_a_base_within_the_allowed_staleness_is_admitted(base: int) -> None:
    assert judged(honest(base=base)()).update.base == base


def test_a_delta_from_a_base_newer_than_the_rounds_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        judged(honest(base=4)())
    assert refused.value.code == "stale"


def test_a_norm_at_the_limit_is_admitted_and_just_above_is_not() -> None:
    scene = honest()
    norm = judged(scene()).norm
    assert judged(scene(), replace(RULES, max_norm=norm)).norm == norm
    with pytest.raises(RefusedError):
        judged(scene(), replace(RULES, max_norm=np.nextafter(norm, 0)))


@tried(max_examples=300, deadline=None)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*honest().honest.fields(), "v"]), inner),
        ).map(lambda value: json.dumps(value).encode()),
        st.dictionaries(
            st.sampled_from([*honest().honest.fields(), "v"]),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            max_size=3,
        ).map(lambda changes: honest().fields(**changes)),
    ),
    payload=st.binary(max_size=4 * SIZE + 4),
    codec=st.sampled_from([CODEC, "", "numpy.ndarray"]),
)
def test_whatever_a_member_signs_is_admitted_or_refused_and_nothing_else_is_raised(
    body: bytes, payload: bytes, codec: str
) -> None:
    try:
        admitted = judged(Sent(honest().signed(body).sealed, payload, codec))
    except RefusedError as error:
        str(error).encode()  # or the registry could not keep it
    else:
        assert np.isfinite(admitted.delta).all()


# the same table, through a coordinator


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, template: Template) -> Fleet:
    """Three rounds of five honest nodes and of mallory, who behaved so far. Closed; tests copy its folder."""
    fleet = Fleet(tmp_path_factory.mktemp("admission") / "coordinator", template)
    for name in ("mallory", "revoked"):
        fleet.enrol(name)
    fleet.coordinator.registry.roster.revoke("revoked")
    for _ in range(3):
        fleet.play_round(*fleet.names, "mallory")
    fleet.close()
    return fleet


def copy_of(played: Fleet, folder: Path) -> Fleet:
    shutil.copytree(played.folder, folder)
    return Fleet(folder, played.template, now=played.now)


def scene_of(fleet: Fleet, round_: Round) -> Scene:
    """Mallory's view of a coordinator."""
    before = replace(round_, number=round_.number - 1, base=round_.base - 1)
    bases = {base.number: base.payload for base in fleet.bases}
    delta = delta_of("mallory", round_.number)
    return Scene(fleet.fields("mallory", round_), delta, bases, fleet.update("mallory", before))


def closed_with(fleet: Fleet, bad: Callable[[Scene], Sent] | None) -> BaseRow:
    """Play round 4: two honest nodes answer, then mallory, then the other three."""
    round_ = fleet.opened()
    fleet.answer(round_, "node-3", "node-1")
    if bad:
        fleet.receive(round_, bad(scene_of(fleet, round_)), "mallory")
    fleet.answer(round_, "node-0", "node-4", "node-2")
    assert fleet.settle(round_) is RoundState.CLOSED
    return fleet.bases[-1]


@pytest.fixture(scope="module")
def without(played: Fleet, tmp_path_factory: pytest.TempPathFactory) -> BaseRow:
    """The base of the same round when mallory is silent."""
    fleet = copy_of(played, tmp_path_factory.mktemp("without") / "coordinator")
    base = closed_with(fleet, None)
    fleet.close()
    return base


@attacks
def test_a_round_with_a_bad_update_ends_bit_for_bit_as_without_it(
    code: str, attack: Attack, played: Fleet, without: BaseRow, tmp_path: Path
) -> None:
    fleet = copy_of(played, tmp_path / "coordinator")
    assert closed_with(fleet, attack) == without
    refusals = fleet.coordinator.registry.rounds.refusals()
    assert [(refusal.round, refusal.node, refusal.code) for refusal in refusals] == [(4, "mallory", code)]
    fleet.close()


def test_a_round_with_mallorys_honest_update_ends_differently(played: Fleet, without: BaseRow, tmp_path: Path) -> None:
    fleet = copy_of(played, tmp_path / "coordinator")
    assert closed_with(fleet, lambda scene: scene()).payload != without.payload
    assert fleet.refused == []
    fleet.close()


# reports


INSTRUCTION = ReportInstruction("tiny", NOW, release=2, watch=Watch.SHADOW, quota=10)


def report(**changes: Any) -> Report:
    return replace(Report("mallory", "tiny", 2, Watch.SHADOW, 10, 3, 1, 30, "0" * 64), **changes)


@pytest.mark.parametrize(
    ("sealed", "code"),
    [
        pytest.param(report(task="other").sealed(MALLORY), "question", id="other task"),
        pytest.param(report(release=1).sealed(MALLORY), "question", id="other release"),
        pytest.param(report(watch=Watch.PROBATION).sealed(MALLORY), "question", id="other stage"),
        pytest.param(report(quota=1000).sealed(MALLORY), "question", id="more windows than asked for"),
        pytest.param(report(won=-17).sealed(MALLORY), "counts", id="fewer won than noise explains"),
        pytest.param(report(won=27).sealed(MALLORY), "counts", id="more won than noise explains"),
        pytest.param(report(lost=-17).sealed(MALLORY), "counts", id="fewer lost than noise explains"),
        pytest.param(report(lost=10**15).sealed(MALLORY), "counts", id="more lost than noise explains"),
        pytest.param(report(node="stranger").sealed(STRANGER), "unknown-node", id="unknown node"),
        pytest.param(report(node="revoked").sealed(REVOKED), "revoked", id="revoked"),
        pytest.param(report(node="node-0").sealed(MALLORY), "signature", id="signed by another node"),
        pytest.param(honest()().sealed, "signature", id="an update, not a report"),
        pytest.param(Sealed(b"", b""), "signature", id="empty"),
    ],
)
def test_a_bad_report_is_refused_with_its_code(sealed: Sealed, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        admit_report(sealed, member=MEMBERS.get, instruction=INSTRUCTION, noise_std=2.0)
    assert refused.value.code == code


@pytest.mark.parametrize(("won", "lost"), [(3, 1), (-16, 10), (10, -16), (26, 0), (0, 26)])
def test_a_report_within_its_windows_and_their_noise_is_admitted(won: int, lost: int) -> None:
    admitted = admit_report(
        report(won=won, lost=lost).sealed(MALLORY), member=MEMBERS.get, instruction=INSTRUCTION, noise_std=2.0
    )
    assert (admitted.won, admitted.lost) == (won, lost)


@pytest.fixture
def shadowed(tmp_path: Path, template: Template) -> Fleet:
    """A fleet whose release 1 is in shadow."""
    settings = SETTINGS.changed(release={"every_rounds": 1})
    fleet = Fleet(tmp_path / "coordinator", template, settings)
    fleet.play_round()
    fleet.coordinator.delivery.offer_newest()
    return fleet


def test_a_report_sent_twice_is_counted_once(shadowed: Fleet) -> None:
    shadowed.report("node-0", won=3, lost=1)
    shadowed.report("node-0", won=3, lost=1)
    assert shadowed.coordinator.registry.releases.counts(1, Watch.SHADOW) == {"node-0": (3, 1)}


def test_a_second_report_of_a_node_does_not_replace_the_first(shadowed: Fleet) -> None:
    shadowed.report("node-0", won=3, lost=1)
    shadowed.report("node-0", won=0, lost=9)
    assert shadowed.coordinator.registry.releases.counts(1, Watch.SHADOW) == {"node-0": (3, 1)}


def test_a_bad_report_leaves_the_counts_as_they_were(shadowed: Fleet) -> None:
    shadowed.report("node-0", won=3, lost=1)
    shadowed.report("node-1", won=11, lost=0)
    assert shadowed.coordinator.registry.releases.counts(1, Watch.SHADOW) == {"node-0": (3, 1)}
    assert set(shadowed.coordinator.delivery.reporters()) == {"node-1", "node-2", "node-3", "node-4"}
