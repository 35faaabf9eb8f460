"""The grid in one process delivers as a network does, good or bad."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from coordinator.coordinator import Coordinator
from coordinator.publisher import Publisher
from coordinator.server_app import UPDATE, server_app
from fleet import flwr_compat
from fleet.messages import CODEC, Update, UpdateInstruction, encode, update_key
from fleet.quantization import Plain, Template
from fleet.settings import Settings
from fleet.signing import Sealed, sha256
from fleet.task import PrivacyUnit, Signature, Task, Training
from fleet.trust.keys import Keyring
from fleet.trust.repository import Repository
from fleet.weights import Flat, Layout
from simulations.grid import CRASHED, Fate, InProcessGrid

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
IDS = (1000, 1001, 1002)
Answer = Callable[[Message, Context], Message]


def app(answer: Answer) -> ClientApp:
    client = ClientApp()
    client.train("update")(answer)
    return client


def echo(message: Message, context: Context) -> Message:
    """Says who was asked, and the text of the question."""
    said = ConfigRecord({"node": context.node_id, "text": message.content.config_records["ask"]["text"]})
    return Message(RecordDict({"said": said}), reply_to=message)


class Line:
    """A link that is told, node by node, what to do; the rest is delivered."""

    def __init__(self, fates: Mapping[int, Fate] | None = None) -> None:
        self.fates = dict(fates or {})

    def __call__(self, node_id: int) -> Fate:
        return self.fates.get(node_id, Fate.DELIVERED)


def grid(line: Line | None = None, answer: Answer = echo) -> InProcessGrid:
    return InProcessGrid({node_id: app(answer) for node_id in IDS}, link=line or Line())


def ask(grid: InProcessGrid, text: str = "how are you?", ids: tuple[int, ...] = IDS) -> list[Message]:
    shared = RecordDict({"ask": ConfigRecord({"text": text})})  # one object for all, as strategies send it
    return list(grid.send_and_receive([Message(shared, node_id, UPDATE) for node_id in ids]))


@pytest.fixture(autouse=True)
def identified() -> None:
    flwr_compat.identify(1)


def heard(replies: list[Message]) -> list[tuple[object, object]]:
    said = [reply.content.config_records["said"] for reply in replies]
    return [(record["node"], record["text"]) for record in said]


def test_each_node_answers_its_own_message_in_order() -> None:
    replies = ask(grid())
    assert heard(replies) == [(1000, "how are you?"), (1001, "how are you?"), (1002, "how are you?")]
    assert [reply.metadata.src_node_id for reply in replies] == list(IDS)
    assert {reply.metadata.dst_node_id for reply in replies} == {flwr_compat.COORDINATOR_ID}
    assert len({reply.metadata.reply_to_message_id for reply in replies}) == 3


def test_a_node_that_changes_its_message_changes_nobody_elses() -> None:
    def vandal(message: Message, context: Context) -> Message:
        reply = echo(message, context)
        message.content.config_records["ask"]["text"] = "spoiled"
        message.content["more"] = ConfigRecord({"x": 1})
        return reply

    shared = RecordDict({"ask": ConfigRecord({"text": "clean"})})
    replies = grid(answer=vandal).send_and_receive([Message(shared, node_id, UPDATE) for node_id in IDS])
    assert heard(list(replies)) == [(node_id, "clean") for node_id in IDS]
    assert (list(shared), shared.config_records["ask"]["text"]) == (["ask"], "clean")


def test_a_nodes_state_is_its_own_and_lasts_from_message_to_message() -> None:
    def count(message: Message, context: Context) -> Message:
        seen = context.state.config_records.get("seen", ConfigRecord({"times": 0}))
        context.state["seen"] = ConfigRecord({"times": int(str(seen["times"])) + 1})
        return Message(RecordDict({"seen": context.state["seen"]}), reply_to=message)

    counting = grid(answer=count)
    ask(counting, ids=(1000,))
    times = [reply.content.config_records["seen"]["times"] for reply in ask(counting)]
    assert times == [2, 1, 1]


def test_a_node_that_is_offline_is_not_listed_and_hears_nothing() -> None:
    asked: list[int] = []

    def note(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        return echo(message, context)

    line = Line({1001: Fate.OFFLINE})
    patchy = grid(line, note)
    assert list(patchy.get_node_ids()) == [1000, 1002]
    assert [node for node, _ in heard(ask(patchy))] == [1000, 1002]
    assert asked == [1000, 1002]
    line.fates.clear()
    assert list(patchy.get_node_ids()) == list(IDS)


def test_a_late_reply_comes_with_the_next_exchange_once() -> None:
    line = Line({1001: Fate.LATE})
    slow = grid(line)
    assert heard(ask(slow, "first")) == [(1000, "first"), (1002, "first")]
    line.fates.clear()
    assert heard(ask(slow, "second", ids=(1000,))) == [(1001, "first"), (1000, "second")]
    assert heard(ask(slow, "third", ids=(1000,))) == [(1000, "third")]


def test_a_message_delivered_twice_is_answered_twice() -> None:
    assert heard(ask(grid(Line({1001: Fate.TWICE})))) == [
        (1000, "how are you?"),
        (1001, "how are you?"),
        (1001, "how are you?"),
        (1002, "how are you?"),
    ]


def test_an_exception_in_a_node_becomes_an_error_reply_and_others_are_heard() -> None:
    def fragile(message: Message, context: Context) -> Message:
        if context.node_id == 1001:
            raise ZeroDivisionError("the sensor is gone")
        return echo(message, context)

    one, crashed, two = ask(grid(answer=fragile))
    assert heard([one, two]) == [(1000, "how are you?"), (1002, "how are you?")]
    assert crashed.has_error()
    assert (crashed.error.code, crashed.metadata.src_node_id) == (CRASHED, 1001)
    assert "the sensor is gone" in str(crashed.error.reason)


def test_a_question_that_a_node_does_not_know_is_an_error_reply() -> None:
    message = Message(RecordDict({"ask": ConfigRecord({"text": "?"})}), 1000, "query.secrets")
    [reply] = grid().send_and_receive([message])
    assert reply.has_error()


def test_a_pushed_message_can_be_pulled_once() -> None:
    quiet = grid()
    ids = list(quiet.push_messages([Message(RecordDict({"ask": ConfigRecord({"text": "hi"})}), 1000, UPDATE)]))
    assert heard(list(quiet.pull_messages(ids))) == [(1000, "hi")]
    assert list(quiet.pull_messages(ids)) == []


def test_a_stock_flower_strategy_runs_over_the_grid_with_one_node_offline() -> None:
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        weights = message.content.array_records["arrays"]["w"].numpy()
        arrays = ArrayRecord({"w": Array(weights + (context.node_id - 1000))})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    network = InProcessGrid(dict.fromkeys(IDS, client), link=Line({1001: Fate.OFFLINE}))
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=2)
    result = strategy.start(network, ArrayRecord({"w": Array(np.zeros(3, np.float32))}), num_rounds=4)
    assert result.arrays is not None
    np.testing.assert_allclose(result.arrays["w"].numpy(), [4.0, 4.0, 4.0])  # four times the mean of 0 and 2


# with the real coordinator behind it


SIZE = 6
EVERY = timedelta(minutes=1)
TASK = Task("tiny", nn.Identity, Signature("x", (4,), -4.0, 4.0, ("a", "b")), PrivacyUnit("w"), Training(0.1, 10), dict)
KEYS = {f"node-{node_id}": Ed25519PrivateKey.generate() for node_id in IDS}


def honest(message: Message, context: Context) -> Message:
    """A node's update: the same bytes however often it is asked."""
    record = message.content.config_records["instruction"]
    sealed = Sealed(bytes(record["body"]), bytes(record["signature"]))  # type: ignore[arg-type]
    asked = UpdateInstruction.verified(sealed, COORDINATOR_KEY.public_key(), now=NOW)
    name = f"node-{context.node_id}"
    payload = encode(np.full(SIZE, 0.01 * (context.node_id - 999), np.float32))
    key = update_key(name, asked.task, asked.round, asked.base_digest)
    update = Update(
        name, asked.task, asked.round, asked.base, asked.base_digest, key, CODEC, sha256(payload), 1, 1, "0" * 64
    ).sealed(KEYS[name])
    content = {
        "update": ConfigRecord({"body": update.body, "signature": update.signature}),
        "delta": ArrayRecord({"delta": Array("float32", (SIZE,), CODEC, payload)}),
    }
    return Message(RecordDict(content), reply_to=message)


COORDINATOR_KEY = Ed25519PrivateKey.generate()


class Fleet:
    """A coordinator that plays rounds only: no release, so its template is not ONNX."""

    def __init__(self, folder: Path) -> None:
        template = Template(Layout(("w",), ((SIZE,),)), (Plain((0, 4 * SIZE)),), bytes(4 * SIZE))
        repository = Repository(folder / "repository", Keyring.create(folder / "keys"), clock=lambda: self.now)
        self.now = NOW
        repository.create()
        settings = Settings().changed(
            privacy={"epsilon": float("inf")}, round={"rounds": 9, "min_updates": 2, "every": EVERY}
        )
        self.coordinator = Coordinator(
            folder,
            TASK,
            settings,
            publisher=Publisher(repository, TASK, template),
            size=SIZE,
            key=COORDINATOR_KEY,
            clock=lambda: self.now,
        )
        self.coordinator.bases.begin(lambda: np.zeros(SIZE, np.float32))
        for name, node_id in zip(KEYS, IDS, strict=True):
            self.coordinator.enrol(name, KEYS[name].public_key(), node_id)

    @property
    def rounds(self) -> Any:
        return self.coordinator.registry.rounds

    def play(self, network: InProcessGrid, monkeypatch: pytest.MonkeyPatch) -> None:
        """One sync window of the real ServerApp, whose round ends at its deadline after one pause."""

        def pause() -> None:
            self.now = self.rounds.current().deadline

        for name in ("offer_newest", "judge"):  # these need a model
            monkeypatch.setattr(self.coordinator.delivery, name, lambda: None)
        server_app(self.coordinator, pause=pause, timeout_s=0)(network, flwr_compat.context(1, 1))
        self.now += EVERY

    def master(self) -> Flat:
        return self.coordinator.bases.master(self.coordinator.bases.newest())


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_I1_a_reply_that_arrives_twice_is_counted_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.play(grid(Line({1000: Fate.TWICE, 1002: Fate.TWICE}), honest), monkeypatch)
    assert fleet.rounds.counted() == 3
    assert fleet.rounds.refusals() == []
    np.testing.assert_allclose(fleet.master(), 0.02, rtol=0.2)


def test_a_reply_that_comes_late_within_its_round_is_counted(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.play(grid(Line({1001: Fate.LATE}), honest), monkeypatch)
    assert fleet.rounds.counted() == 3


def test_I1_a_reply_that_comes_after_its_round_is_refused_and_the_next_round_goes_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line()
    asked: list[int] = []

    def slow(message: Message, context: Context) -> Message:
        """Node 1001 has nothing at first; its second reply is still under way when the round closes."""
        asked.append(context.node_id)
        if context.node_id == 1001 and asked.count(1001) == 1:
            line.fates[1001] = Fate.LATE
            return Message(RecordDict(), reply_to=message)
        return honest(message, context)

    network = grid(line, slow)
    fleet.play(network, monkeypatch)
    assert fleet.rounds.counted() == 2
    line.fates.clear()
    fleet.play(network, monkeypatch)
    refusals = [(refusal.round, refusal.node, refusal.code) for refusal in fleet.rounds.refusals()]
    assert refusals == [(2, "node-1001", "round")]
    assert fleet.rounds.counted() == 5


def test_I9_a_fleet_that_is_offline_fails_its_round_and_the_next_one_closes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(dict.fromkeys(IDS, Fate.OFFLINE))
    network = grid(line, honest)
    fleet.play(network, monkeypatch)
    line.fates.clear()
    fleet.play(network, monkeypatch)
    assert [round_.state for round_ in fleet.rounds.all()] == ["failed", "closed"]


def test_I12_a_node_that_answers_nonsense_does_not_stop_the_round(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(message: Message, context: Context) -> Message:
        nonsense = {
            1000: RecordDict({"update": ConfigRecord({"body": 7, "signature": "x"})}),
            1001: RecordDict({"update": MetricRecord({"loss": 0.0}), "delta": ConfigRecord({"delta": b"x"})}),
        }
        if context.node_id == 1002:
            return honest(message, context)
        return Message(nonsense[context.node_id], reply_to=message)

    fleet.play(grid(answer=odd), monkeypatch)
    assert fleet.rounds.answered(1) == {"node-1002"}
    assert {refusal.code for refusal in fleet.rounds.refusals()} == {"signature"}
    assert {refusal.node for refusal in fleet.rounds.refusals()} == {"node-1000"}


def test_a_node_is_not_asked_again_while_its_answer_is_under_way(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def count(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        return honest(message, context)

    fleet.play(grid(Line({1001: Fate.LATE}), count), monkeypatch)
    assert fleet.rounds.counted() == 3
    assert asked == list(IDS)


def test_a_round_is_opened_by_the_timer_and_not_before(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    network = grid(answer=honest)
    fleet.play(network, monkeypatch)
    fleet.now -= EVERY
    fleet.play(network, monkeypatch)
    assert len(fleet.rounds.all()) == 1
    fleet.play(network, monkeypatch)
    assert len(fleet.rounds.all()) == 2
