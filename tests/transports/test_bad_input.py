"""Whatever comes in over the network and is not honest is refused by one documented code, logged once, and changes
no bit of the round's aggregate."""

import json
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.corestate import sql_corestate

from coordinator.server_app import UPDATE
from fleet import flwr_compat
from fleet.enrolment import Enrolment, TokenRequest
from fleet.errors import RefusedError
from fleet.flwr_compat import FleetApi
from fleet.messages import CODEC, Update, UpdateInstruction, encode, update_key
from fleet.quantization import Template
from fleet.signing import Sealed, sha256
from fleet.weights import Flat
from node.link import FlowerPost
from tests.coordinator.conftest import SETTINGS, SIZE, TASK, Fleet, Sent, delta_of, key_of, warm_start
from tests.coordinator.served import ask
from tests.coordinator.test_admission import Attack, Scene, spoiled
from tests.coordinator.test_superlink import FOLDED, let_fold
from tests.coordinator.wearer import Wearer
from tests.node.conftest import Toy
from tests.transports.networks import Embedded, events, now
from tests.waiting import until

YEAR = timedelta(days=366)
TWO_GB = 2**31
DOCS = (Path(__file__).parents[2] / "docs" / "refusals.md").read_text(encoding="utf-8")


class Hostile(Wearer):
    """An enrolled node that answers each round with one attack, and then with nothing."""

    attack: Attack
    bases: dict[int, str]
    dtype = "float32"

    def _answer(self, message: Message) -> RecordDict:
        record = message.content.config_records["instruction"]
        sealed = Sealed(bytes(record["body"]), bytes(record["signature"]))  # type: ignore[arg-type]
        wish = UpdateInstruction.verified(sealed, self.welcome.instruction_key, now=now())
        if wish.round in self.asked:
            return RecordDict()
        self.asked.append(wish.round)
        sent = self.attack(self.scene(wish))
        delta = Array(self.dtype, (len(sent.payload) // 4,), sent.codec, sent.payload)
        fields = ConfigRecord({"body": sent.sealed.body, "signature": sent.sealed.signature})
        return RecordDict({"update": fields, "delta": ArrayRecord({"delta": delta})})

    def scene(self, wish: UpdateInstruction) -> Scene:
        """What it could honestly say, and what it could have said a round ago."""
        delta = delta_of(self.name, wish.round)
        update = self.update(wish.round, wish.base, wish.base_digest, delta)
        older = self.update(wish.round - 1, wish.base, wish.base_digest, delta)
        return Scene(update, delta, self.bases, Sent(older.sealed(self.key), encode(delta)))

    def update(self, round_: int, base: int, digest: str, delta: Flat) -> Update:
        payload = encode(delta)
        key = update_key(self.name, TASK.name, round_, digest)
        return Update(self.name, TASK.name, round_, base, digest, key, CODEC, sha256(payload), 1, round_, "0" * 64)


class Tiny(Embedded):
    """The transport of the field under the task whose honest updates are the same every time."""

    task = TASK
    settings = SETTINGS.changed(task={"file": "tests.coordinator.conftest:TASK"}, round={"rounds": 60})
    reference = "tests.coordinator.conftest:TASK"


@dataclass
class Source:
    """Where the tiny task's graph and first weights come from."""

    template: Template

    def weights(self) -> Flat:
        return warm_start()


class Field:
    """Two honest nodes, a hostile one, one that was revoked, and what honest rounds come to."""

    def __init__(self, network: Tiny, alone: Fleet) -> None:
        self.network = network
        self._alone = alone
        invite = network.access.invite
        self.honest = [Wearer(invite(name)).start() for name in alone.names]
        self.mallory = Hostile(invite("mallory"))
        self.revoked = Wearer(invite("revoked"))
        network.access.revoke("revoked")
        self.mallory.start()

    def play(self, attack: Attack, over: Callable[[], bool]) -> None:
        """A round that mallory attacks, and the same round without her: both end in the same weights."""
        rounds = self.network.coordinator.registry.rounds
        self.mallory.attack = attack
        self.mallory.bases = {base.number: base.payload for base in rounds.bases()}
        self.network.play(*self.honest, over=over)
        self._alone.play_round()
        assert rounds.bases()[-1].master == self._alone.bases[-1].master

    def stop(self) -> None:
        for wearer in (*self.honest, self.mallory):
            wearer.stop()

    def logged(self, event: str) -> list[str]:
        """Codes of what the coordinator recorded under this name."""
        return [entry["code"] for entry in events(self.network.folder, event)]


@pytest.fixture(scope="module")
def template() -> Template:
    from coordinator.requantizer import register

    return register(TASK, warm_start()).template


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory, template: Template) -> Iterator[Field]:
    folder = tmp_path_factory.mktemp("bad-input")
    with ExitStack() as stack:
        network = Tiny(folder / "coordinator", Source(template), stack)  # type: ignore[arg-type]
        field = Field(network, Fleet(folder / "alone", template, Tiny.settings, nodes=2))
        stack.callback(field.stop)
        yield field


REPLIES: dict[str, tuple[str, Attack]] = {
    "NaN": ("not-finite", lambda s: spoiled(s, np.nan)),
    "wrong layout": ("layout", lambda s: s(s.delta[:-1])),
    "oversized": ("oversized", lambda s: s(np.zeros(SIZE + 1, np.float32))),
    "replayed from the round before": ("round", lambda s: s.before),
    "unsigned": ("signature", lambda s: Sent(Sealed(s().sealed.body, b""), encode(s.delta))),
    "malformed JSON": ("signature", lambda s: s.signed(b'{"node":"mallory",')),
    "wrong base": ("base", lambda s: s(base_digest="0" * 64)),
    "unknown node": ("unknown-node", lambda s: s(by=key_of("stranger"), node="stranger")),
    "a path for a name": ("unknown-node", lambda s: s(by=key_of("stranger"), node="../../keys/root")),
    "revoked node": ("revoked", lambda s: s(by=key_of("revoked"), node="revoked")),
    "in another node's name": ("signature", lambda s: s(node="node-0")),
    "another codec": ("codec", lambda s: replace(s(), codec="fleet.pickle.v1")),
}


@pytest.mark.parametrize("what", REPLIES)
def test_a_bad_update_is_refused_once_and_the_aggregate_is_the_one_without_it(field: Field, what: str) -> None:
    code, attack = REPLIES[what]
    rounds = field.network.coordinator.registry.rounds
    before, logged = len(rounds.refusals()), len(field.logged("refused"))
    field.play(attack, over=lambda: len(rounds.refusals()) > before)
    assert [(r.node, r.code) for r in rounds.refusals()[before:]] == [("mallory", code)]
    assert field.logged("refused")[logged:] == [code]
    assert f"`{code}`" in DOCS


def test_a_reply_longer_than_any_honest_one_is_not_read_and_the_round_goes_on(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_corestate, "OBJECT_PUSH_SESSION_TTL_SECONDS", 30)  # for parts that never come; or 180
    before = len(field.logged("no-update"))
    field.play(lambda s: replace(s(), payload=bytes(200_000)), over=lambda: len(field.logged("no-update")) > before)
    assert field.logged("no-update")[before:] == ["failed"]
    assert "`failed`" in DOCS


def test_a_reply_that_would_unfold_into_gigabytes_is_not_read_either(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_fold(monkeypatch)
    monkeypatch.setattr(field.mallory, "dtype", FOLDED)
    before, refused = len(field.logged("no-update")), len(field.logged("refused"))
    field.play(lambda s: s(), over=lambda: len(field.logged("no-update")) > before)
    assert field.logged("no-update")[before:] == ["failed"]
    assert field.logged("refused")[refused:] == []


# over HTTP, while a round is open

Request = Callable[[Field], str]


def declared(field: Field, path: str, length: int) -> str:
    """The code that a request of this length is answered by, before its body is sent."""
    parts = urlsplit(field.network.url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as sock:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        sock.sendall(head.encode() + b"x")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert b" 413 " in answer.split(b"\r\n")[0]
    return str(json.loads(answer.split(b"\r\n\r\n")[1])["code"])


def posted(field: Field, path: str, sealed: Sealed) -> str:
    body = {name: b64encode(getattr(sealed, name)).decode() for name in ("body", "signature")}
    reply = ask(f"{field.network.url}/api/v1/{path}", method="POST", data=body)
    return "" if reply.status == 200 else reply.code


def got(field: Field, path: str, wearer: Wearer | None = None) -> str:
    headers = wearer.client.bearer() if wearer else {}
    return ask(f"{field.network.url}{path}", headers=dict(headers)).code


def token_request(field: Field, name: str, *, late: timedelta = timedelta(), nonce: str = "n" * 20) -> Sealed:
    return TokenRequest(name, nonce, now() - late).sealed(key_of(name))


def replayed_token(field: Field) -> str:
    request = token_request(field, "mallory", nonce="only-once-" * 3)
    assert posted(field, "token", request) == ""
    return posted(field, "token", request)


def named_like_a_path(field: Field) -> str:
    invitation = replace(field.network.access.invite("innocent"), name="../innocent")
    flower_key = ec.generate_private_key(ec.SECP384R1())
    return posted(field, "enrol", Enrolment.sealed(invitation, key_of("x"), flower_key, now=now()))


def stranger_at_flowers_door(field: Field) -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    headers = {"content-type": "application/protobuf", **flwr_compat.flower_headers(key, now())}
    reply = ask(f"{field.network.url}/v1/fleet/pull-messages", method="POST", data=b"", headers=headers)
    assert reply.status == 401
    return "unknown-node"


def question(node: int) -> Message:
    """What we might ask a node, and did not."""
    asked = Message(RecordDict({"instruction": ConfigRecord({"body": b"learn"})}), node, UPDATE)
    flwr_compat.number(asked, asked.object_id)
    return asked


def told_flower(field: Field, message: Message) -> str:
    """The code that mallory's message to Flower is answered by."""
    mallory = field.mallory
    try:
        FleetApi(FlowerPost(mallory.transport, mallory.flower_key, mallory.clock)).push(
            mallory.welcome.flower_id, message
        )
    except RefusedError as refused:
        return refused.code
    return ""


def victim(field: Field) -> int:
    return field.honest[0].welcome.flower_id


REQUESTS: dict[str, tuple[str, Request]] = {
    "clock a year slow": ("clock", lambda f: posted(f, "token", token_request(f, "mallory", late=YEAR))),
    "clock a year fast": ("clock", lambda f: posted(f, "token", token_request(f, "mallory", late=-YEAR))),
    "malformed JSON": ("malformed", lambda f: ask(f"{f.network.url}/api/v1/enrol", method="POST", data=b"{").code),
    "2 GB for us": ("too-large", lambda f: declared(f, "/api/v1/enrol", TWO_GB)),
    "2 GB for Flower": ("too-large", lambda f: declared(f, "/v1/fleet/push-object", TWO_GB)),
    "a path out of the repository": (
        "not-found",
        lambda f: got(f, "/api/v1/repository/metadata/..%2f..%2fkeys/root.pem", f.mallory),
    ),
    "a path out of the API": ("not-found", lambda f: got(f, "/api/v1/%2e%2e/keys/root.pem", f.mallory)),
    "Flower's control": ("not-found", lambda f: got(f, "/v1/control/list-runs")),
    "a path for a name": ("invitation", named_like_a_path),
    "an unknown node's token": ("unknown-node", lambda f: posted(f, "token", token_request(f, "stranger"))),
    "a revoked node's token": ("revoked", lambda f: posted(f, "token", token_request(f, "revoked"))),
    "a token request again": ("replayed", replayed_token),
    "unsigned": (
        "signature",
        lambda f: posted(f, "token", Sealed(token_request(f, "mallory").body, b"")),
    ),
    "a question to another node": ("not-a-reply", lambda f: told_flower(f, question(victim(f)))),
    "another node's reply": (
        "not-a-reply",
        lambda f: told_flower(f, Message(RecordDict(), reply_to=question(victim(f)))),
    ),
    "a stranger at Flower's door": ("unknown-node", stranger_at_flowers_door),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_bad_request_is_refused_once_and_the_open_rounds_aggregate_is_the_one_without_it(
    field: Field, what: str
) -> None:
    code, request = REQUESTS[what]
    logged = len(field.logged("request-refused"))
    answered: list[str] = []

    def over() -> bool:
        if not answered:
            answered.append(request(field))
        return True

    field.play(lambda s: s.before, over=over)
    assert answered == [code]
    assert field.logged("request-refused")[logged:].count(code) == 1
    assert f"`{code}`" in DOCS


@pytest.mark.parametrize("given", [RecordDict(), Error(2, "crashed")], ids=["content", "an error"])
def test_a_reply_to_what_nobody_waits_for_any_more_is_taken_and_dropped(
    field: Field, given: RecordDict | Error
) -> None:
    """A round may close between a node's ask and its answer: that is no reason for its link to back off."""
    state = field.network.grid._state  # type: ignore[attr-defined]

    def kept() -> tuple[int, int, int]:
        return state.num_message_ins(), state.num_message_res(), len(state.object_store)

    before = kept()
    while time.sleep(0.5) or kept() != before:  # what another test left there may still be on its way out
        before = kept()
    assert told_flower(field, Message(given, reply_to=question(field.mallory.welcome.flower_id))) == ""
    assert kept() == before


def test_a_node_that_goes_away_in_a_round_is_named_although_flower_answers_for_it(field: Field) -> None:
    state = field.network.grid._state  # type: ignore[attr-defined]
    before = len(field.logged("no-update"))

    def is_missed() -> bool:
        return len(field.logged("no-update")) > before

    def go_away(scene: Scene) -> Sent:
        state.deactivate_node(field.mallory.welcome.flower_id)
        until(is_missed)
        return scene.before

    field.play(go_away, over=is_missed)
    assert [entry["node"] for entry in events(field.network.folder, "no-update")[before:]] == ["mallory"]


# to a node


def test_an_instruction_that_we_did_not_sign_is_refused_once_and_nothing_is_learned(tmp_path: Path, toy: Toy) -> None:
    """As if it had come past the gate: a node believes the signature and not Flower's routing."""
    with ExitStack() as stack:
        network = Embedded(tmp_path / "coordinator", toy, stack)
        anna, ben = (network.join(name) for name in ("anna", "ben"))
        network.until_online(anna)
        base = network.coordinator.bases.newest()
        wish = UpdateInstruction("toy", now() + timedelta(minutes=5), 1, base.number, base.payload)
        before = anna.dump()
        sealed = wish.sealed(key_of("mallory"))
        record = ConfigRecord({"body": sealed.body, "signature": sealed.signature})
        network.grid.push_messages([Message(RecordDict({"instruction": record}), network.id_of(anna), UPDATE)])
        network.until(lambda: bool(anna.events("instruction-refused")))
        assert anna.dump() == before
        round_ = network.play(anna, ben)
        assert len(anna.events("instruction-refused")) == 1
        assert len(network.coordinator.registry.rounds.entries(round_)) == 2
