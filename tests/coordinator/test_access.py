"""Who comes in, and who does not: invitations, keys, tokens, revocation."""

import secrets
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Lock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import OKPKey

from coordinator.access import CLOCK_TOLERANCE, INVITATION_LIFE, Access, Address
from coordinator.roster import MOST_NONCES
from coordinator.round import RoundState
from coordinator.tokens import LIFE, Tokens
from fleet.enrolment import Enrolment, Invitation, TokenRequest, Welcome
from fleet.errors import LinkError, RefusedError, UsageError
from fleet.quantization import Template
from fleet.signing import Sealed
from tests.coordinator.conftest import NOW, SETTINGS, TASK, Fleet

TOKENS = Tokens(Ed25519PrivateKey.generate())
CRITICAL = b64encode(b'{"alg":"Ed25519","crit":5}').decode().rstrip("=") + ".e30.x"  # a header that joserfc trips over


class Flower:
    """Flower's list of nodes, in memory."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}
        self._lock = Lock()

    def register(self, key: bytes) -> int:
        with self._lock:
            return self.known.setdefault(key, 2**63 + secrets.randbits(63))

    def unregister(self, key: bytes) -> None:
        self.known.pop(key, None)


class Device:
    """A device with its keys."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.flower_key = ec.generate_private_key(ec.SECP384R1())

    def request(self, invitation: Invitation, *, early: timedelta = timedelta(0)) -> Sealed:
        return Enrolment.sealed(invitation, self.key, self.flower_key, now=NOW + early)

    def token_request(self, name: str, *, nonce: str = "", early: timedelta = timedelta(0)) -> Sealed:
        return TokenRequest(name, nonce or secrets.token_urlsafe(16), NOW + early).sealed(self.key)


class Door:
    """A coordinator's door over a folder, and the clock of its test."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.flower = Flower()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.open()

    def open(self) -> None:
        """Start it, as after a crash."""
        root = self.fleet.repository.first_root_bytes()
        address = Address("https://fleet.example", "", root, TASK, "task.py:TASK", SETTINGS)
        self.access = Access(
            self.fleet.coordinator, self.flower, TOKENS, address, clock=lambda: self.fleet.now, record=self.record
        )

    def record(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def enrolled(self, name: str) -> Device:
        device = Device()
        self.access.enrol(device.request(self.access.invite(name)))
        return device

    def token(self, device: Device, name: str) -> str:
        return self.access.token(device.token_request(name))[0]


@pytest.fixture
def door(tmp_path: Path, template: Template) -> Door:
    return Door(Fleet(tmp_path / "coordinator", template, nodes=0))


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(RefusedError) as caught:
        yield
    assert caught.value.code == code


def test_an_invited_node_is_welcomed_and_on_record_and_known_to_flower(door: Door) -> None:
    invitation = door.access.invite("watch-1")
    device = Device()
    welcome = Welcome.checked(door.access.enrol(device.request(invitation)), invitation)
    assert welcome.name == "watch-1"
    registry = door.fleet.coordinator.registry
    assert registry.roster.member("watch-1").key == device.key.public_key()
    assert registry.roster.active() == {"watch-1": welcome.flower_id}
    assert list(door.flower.known.values()) == [welcome.flower_id]


def test_a_request_whose_answer_was_lost_is_answered_alike(door: Door) -> None:
    invitation, device = door.access.invite("watch-1"), Device()
    first = door.access.enrol(device.request(invitation))
    door.fleet.pass_time(timedelta(minutes=1))
    assert door.access.enrol(device.request(invitation, early=timedelta(minutes=1))) == first
    assert len(door.flower.known) == 1


def test_a_used_invitation_lets_nobody_else_in(door: Door) -> None:
    invitation = door.access.invite("watch-1")
    door.access.enrol(Device().request(invitation))
    with refused("invitation"):
        door.access.enrol(Device().request(invitation))
    assert len(door.flower.known) == 1


def test_a_hundred_enrolments_at_once_with_one_invitation_enrol_one_node(door: Door) -> None:
    invitation = door.access.invite("watch-1")
    requests = [Device().request(invitation) for _ in range(100)]

    def enrol(request: Sealed) -> str:
        try:
            return Welcome.checked(door.access.enrol(request), invitation).name
        except RefusedError as error:
            return error.code

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(enrol, requests))
    assert sorted(outcomes) == ["invitation"] * 99 + ["watch-1"]
    assert len(door.flower.known) == 1
    assert len(door.fleet.coordinator.registry.roster.entries()) == 1


def test_an_invitation_expires(door: Door) -> None:
    invitation = door.access.invite("watch-1")
    door.fleet.pass_time(INVITATION_LIFE)
    with refused("invitation"):
        door.access.enrol(Device().request(invitation, early=INVITATION_LIFE))


@pytest.mark.parametrize("changed", [{"name": "watch-2"}, {"secret": "another"}, {"secret": "\ud800"}])
def test_an_invitation_is_for_its_name_and_by_its_secret(door: Door, changed: dict[str, str]) -> None:
    invitation = replace(door.access.invite("watch-1"), **changed)
    with refused("invitation"):
        door.access.enrol(Device().request(invitation))


def test_a_new_invitation_voids_the_older_one_of_its_name(door: Door) -> None:
    old, new = door.access.invite("watch-1"), door.access.invite("watch-1")
    with refused("invitation"):
        door.access.enrol(Device().request(old))
    assert Welcome.checked(door.access.enrol(Device().request(new)), new).name == "watch-1"


def test_a_name_is_given_once(door: Door) -> None:
    door.enrolled("watch-1")
    door.access.revoke("watch-1")
    with refused("name-taken"):
        door.access.invite("watch-1")


@pytest.mark.parametrize("part", ["key", "flower_key"])
def test_one_device_is_one_node(door: Door, part: str) -> None:
    device, other = door.enrolled("watch-1"), Device()
    setattr(other, part, getattr(device, part))
    for same in (device, other):
        with refused("invitation"):
            door.access.enrol(same.request(door.access.invite("watch-2")))
    assert [entry.name for entry in door.fleet.coordinator.registry.roster.entries()] == ["watch-1"]
    assert len(door.flower.known) == 1


def test_nobody_is_invited_under_a_name_that_could_be_a_path(door: Door) -> None:
    with pytest.raises(UsageError):
        door.access.invite("../watch")


@pytest.mark.parametrize("early", [timedelta(days=365), -timedelta(days=365), CLOCK_TOLERANCE + timedelta(seconds=1)])
def test_a_clock_that_is_far_off_enrols_nobody_and_gets_no_token(door: Door, early: timedelta) -> None:
    invitation, device = door.access.invite("watch-1"), Device()
    with refused("clock"):
        door.access.enrol(device.request(invitation, early=early))
    door.access.enrol(device.request(invitation, early=CLOCK_TOLERANCE))
    with refused("clock"):
        door.access.token(device.token_request("watch-1", early=early))


def test_neither_the_registry_nor_the_log_holds_the_secret(door: Door) -> None:
    invitation = door.access.invite("watch-1")
    door.access.enrol(Device().request(invitation))
    files = [path.read_bytes() for path in door.fleet.folder.rglob("*") if path.is_file()]
    assert any(b"watch-1" in data for data in files)
    assert not any(invitation.secret.encode() in data for data in files)
    assert invitation.secret not in repr(door.events)


# tokens


def test_a_token_says_who_shows_it_for_ten_minutes(door: Door) -> None:
    device = door.enrolled("watch-1")
    text, expires = door.access.token(device.token_request("watch-1"))
    assert expires == NOW + LIFE
    assert door.access.authenticate(text) == "watch-1"
    door.fleet.pass_time(LIFE - timedelta(seconds=1))
    assert door.access.authenticate(text) == "watch-1"
    door.fleet.pass_time(timedelta(seconds=1))
    with refused("token"):
        door.access.authenticate(text)


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "é", "x" * 5000, CRITICAL])
def test_what_is_no_token_of_ours_lets_nobody_in(door: Door, text: str) -> None:
    with refused("token"):
        door.access.authenticate(text)
    forged, _ = Tokens(Ed25519PrivateKey.generate()).mint("watch-1", now=NOW)
    with refused("token"):
        door.access.authenticate(forged)


@pytest.mark.parametrize(
    "claims", [{"sub": "watch-1", "aud": "edgefleet-admin"}, {"sub": 1, "aud": "edgefleet-device"}]
)
def test_a_token_of_ours_for_something_else_lets_nobody_in(claims: dict[str, object]) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    expires = {"exp": int((NOW + LIFE).timestamp())}
    text = jwt.encode({"alg": "Ed25519"}, claims | expires, OKPKey.import_key(pem), algorithms=["Ed25519"])
    with refused("token"):
        Tokens(key).read(text, now=NOW)


def test_a_request_for_a_token_counts_once_even_after_a_crash(door: Door) -> None:
    request = door.enrolled("watch-1").token_request("watch-1")
    door.access.token(request)
    door.fleet.close()
    door.fleet.open()
    door.open()
    with refused("replayed"):
        door.access.token(request)


def test_a_token_is_for_the_holder_of_the_key_only(door: Door) -> None:
    door.enrolled("watch-1")
    with refused("signature"):
        door.access.token(Device().token_request("watch-1"))
    with refused("unknown-node"):
        door.access.token(Device().token_request("watch-9"))
    with refused("signature"):
        door.access.token(Sealed(b"[]", b""))


@pytest.mark.parametrize("nonce", ["short", "x" * 65, pytest.param("\ud800" * 20, id="half characters")])
def test_a_nonce_is_neither_guessable_nor_endless(door: Door, nonce: str) -> None:
    with refused("signature"):
        door.access.token(door.enrolled("watch-1").token_request("watch-1", nonce=nonce))


def test_I12_a_node_that_asks_for_tokens_without_end_is_refused_and_no_other_is(door: Door) -> None:
    greedy, modest = door.enrolled("watch-1"), door.enrolled("watch-2")
    first = greedy.token_request("watch-1")
    door.access.token(first)
    for _ in range(MOST_NONCES - 1):
        door.token(greedy, "watch-1")
    with refused("rate"):
        door.token(greedy, "watch-1")
    with refused("replayed"):
        door.access.token(first)
    door.token(modest, "watch-2")
    later = 2 * CLOCK_TOLERANCE + timedelta(seconds=1)
    door.fleet.pass_time(later)
    door.access.token(greedy.token_request("watch-1", early=later))


# revocation


def test_a_revoked_node_gets_nothing_from_that_moment_on(door: Door) -> None:
    device = door.enrolled("watch-1")
    token = door.token(device, "watch-1")
    door.access.revoke("watch-1")
    with refused("revoked"):
        door.access.authenticate(token)
    with refused("revoked"):
        door.access.token(device.token_request("watch-1"))
    assert door.flower.known == {}
    assert door.fleet.coordinator.registry.roster.active() == {}


def test_a_revoked_node_gets_nothing_even_if_flower_cannot_be_told(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(key: bytes) -> int:
        raise LinkError("database is locked")

    door.enrolled("watch-1")
    token = door.token(door.enrolled("watch-2"), "watch-2")
    monkeypatch.setattr(door.flower, "register", busy)
    with pytest.raises(LinkError):
        door.access.revoke("watch-2")
    with refused("revoked"):
        door.access.authenticate(token)


def test_revoking_somebody_unknown_is_refused(door: Door) -> None:
    with refused("unknown-node"):
        door.access.revoke("nobody")


def test_a_revocation_that_a_crash_cut_short_is_finished_at_the_next_start(door: Door) -> None:
    device = door.enrolled("watch-1")
    token = door.token(device, "watch-1")
    door.fleet.coordinator.revoke("watch-1")  # and there the power goes
    door.open()
    assert door.flower.known == {}
    with refused("revoked"):
        door.access.authenticate(token)


def test_a_flower_that_forgot_its_nodes_is_told_of_them_again(door: Door) -> None:
    door.enrolled("watch-1")
    door.enrolled("watch-2")
    door.access.revoke("watch-2")
    door.flower = Flower()
    door.open()
    number = door.fleet.coordinator.registry.roster.active()["watch-1"]
    assert list(door.flower.known.values()) == [number]


def test_I8_a_node_that_is_revoked_while_its_round_is_open_is_neither_waited_for_nor_counted(
    tmp_path: Path, template: Template
) -> None:
    fleet = Fleet(tmp_path / "coordinator", template, nodes=3)
    door = Door(fleet)
    round_ = fleet.opened()
    fleet.answer(round_, "node-0", "node-1", "node-2")
    door.access.revoke("node-1")
    assert set(fleet.coordinator.waiting_for(round_)) == set()
    assert fleet.settle(round_, late=False) is RoundState.CLOSED
    assert fleet.coordinator.registry.rounds.counted() == 2
