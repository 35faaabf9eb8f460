"""A whole node over a real repository: what it obeys, that it always answers, and that it can be killed anywhere."""

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.exceptions import DownloadError

from coordinator.publisher import EVERYBODY, Publisher
from fleet import durable
from fleet.errors import (
    DowngradeError,
    ExpiredError,
    InputError,
    LinkError,
    SignatureError,
    StoreError,
    TamperedError,
    TaskError,
    TrustError,
)
from fleet.messages import Instruction, Report, ReportInstruction, Update, UpdateInstruction, Watch, decode
from fleet.release import ROLLOUT_PATH, Release, Rollout
from fleet.settings import Settings
from fleet.signing import Sealed, unseal
from fleet.trust.keys import Keyring
from fleet.trust.repository import Repository
from node import agent as agent_module
from node.agent import RETRY_INTERVAL, Agent
from node.floors import SqliteFloors
from node.gauges import NodeGauges
from node.identity import Identity
from node.installer import FolderFetcher
from node.ledger import Ledger
from node.outbox import Outbox
from node.promotion import Stage, StageLog
from node.provisioning import provision
from node.serving import Serving
from node.shadow import Shadow
from node.slots import Slots
from node.workshop import InProcess
from tests.power_cut import PowerCut

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
COORDINATOR = Ed25519PrivateKey.from_private_bytes(bytes([7] * 32))
THIEF = Ed25519PrivateKey.from_private_bytes(bytes([9] * 32))
SETTINGS = Settings().changed(
    privacy={"planned_releases": 4}, round={"rounds": 2, "max_staleness": 1}, release={"probation_windows": 2}
)
X = np.array([0.5, 0.0], np.float32)


class Link(FolderFetcher):
    """A folder behind a link that may be down."""

    up = True
    lost = "nothing"  # what stands in the names of files that cannot be had

    def _fetch(self, url: str) -> Iterator[bytes]:
        if not self.up or self.lost in url:
            raise DownloadError(f"{url}: the network is down")
        return super()._fetch(url)


class World:
    """A coordinator's shelf and one node, which may be killed and opened again."""

    def __init__(self, folder: Path, toy: Any, key: Ed25519PrivateKey) -> None:
        self.folder, self.toy, self.key, self.now = folder, toy, key, NOW
        self.repository = Repository(folder / "shelf", Keyring.create(folder / "keys"), clock=lambda: self.now)
        self.repository.create()
        self.publisher = Publisher(self.repository, toy.task, toy.template)
        self.link = Link(self.repository.folder)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.agents: list[Agent] = []

    def publish(self, number: int, threshold: str, *, right: bool = True) -> None:
        """Base and release of one number, and the rollout of that release."""
        master = self.toy.weights(right=right, scale=1 + number / 8)
        self.publisher.base(number, number, master)
        self.publisher.release(self.publisher.manifest(number, number, master, SETTINGS.release), master)
        self.publisher.rollout(Rollout(number, "salt", threshold, serving=1))

    def identity(self) -> Identity:
        return Identity(
            "n1",
            self.key.private_bytes_raw(),
            COORDINATOR.public_key().public_bytes_raw(),
            self.repository.root_bytes(),
            SETTINGS,
            self.toy.task,
        )

    def provision(self) -> Agent:
        self.agent = self._opened(partial(provision, self.folder / "node", self.identity))
        return self.agent

    def restart(self) -> Agent:
        self.agent = self._opened(partial(Agent, self.folder / "node"))
        return self.agent

    def _opened(self, make: Callable[..., Agent]) -> Agent:
        agent = make(
            self.toy.task,
            workshop=InProcess(self.link),
            clock=lambda: self.now,
            record=lambda event, **fields: self.events.append((event, fields)),
        )
        self.agents.append(agent)
        return agent

    def ask(self, round_: int = 1, base: int = 1, **fields: Any) -> UpdateInstruction:
        payload = self.publisher.payload_digest(self.toy.weights(scale=1 + base / 8))
        wish = UpdateInstruction("toy", self.now + timedelta(minutes=5), round_, base, payload)
        return replace(wish, **fields)

    def ask_report(self, release: int = 2, **fields: Any) -> ReportInstruction:
        wish = ReportInstruction("toy", self.now + timedelta(minutes=5), release, Watch.SHADOW, quota=3)
        return replace(wish, **fields)

    def update(self, round_: int = 1, base: int = 1) -> Update | None:
        parcel = self.agent.update(self.ask(round_, base).sealed(COORDINATOR))
        return Update.of(unseal("update", parcel.sealed, self.key.public_key())) if parcel else None

    def live(self, count: int) -> None:
        windows = self.toy.points(count)
        for x, y in zip(windows.x, windows.y, strict=True):
            seq, _ = self.agent.answer(x)
            assert seq is not None
            self.agent.label(seq, int(y))
        self.agent.step()

    def says(self) -> int:
        return self.agent.answer(X)[1].release

    def close(self) -> None:
        for agent in self.agents:
            agent.close()

    def dump(self) -> list[str]:
        store = sqlite3.connect(self.folder / "node" / "node.db")
        lines = list(store.iterdump())
        store.close()
        return lines

    def hours_pass(self, hours: float = 2) -> None:
        self.now += timedelta(hours=hours)
        self.repository.heartbeat()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, toys: Any) -> Path:
    """Two worlds that have release 1: one with a node that serves it, one without. Durable writes take their time."""
    folder = tmp_path_factory.mktemp("made")
    world = World(folder / "bare", toys, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    world.publish(1, EVERYBODY)
    shutil.copytree(folder / "bare", folder / "provisioned")
    world = World(folder / "provisioned", toys, world.key)
    world.provision().buffer.keep(toys.points(20))
    world.close()
    return folder


@pytest.fixture
def bare(made: Path, tmp_path: Path, toy: Any, key: Ed25519PrivateKey) -> Iterator[World]:
    """A world whose node was not provisioned."""
    world = World(shutil.copytree(made / "bare", tmp_path / "world"), toy, key)
    yield world
    world.close()


@pytest.fixture
def world(made: Path, tmp_path: Path, toy: Any, key: Ed25519PrivateKey) -> Iterator[World]:
    world = World(shutil.copytree(made / "provisioned", tmp_path / "world"), toy, key)
    world.restart()
    yield world
    world.close()


REFUSED: list[Any] = [
    pytest.param(lambda wish: Sealed(wish.sealed(COORDINATOR).body, b""), SignatureError, id="unsigned"),
    pytest.param(lambda wish: Sealed(b"", b""), SignatureError, id="empty"),
    pytest.param(lambda wish: wish.sealed(THIEF), SignatureError, id="forged"),
    pytest.param(lambda wish: replace(wish, expires=NOW).sealed(COORDINATOR), ExpiredError, id="expired"),
    pytest.param(lambda wish: replace(wish, task="other").sealed(COORDINATOR), TrustError, id="for another task"),
]


@pytest.mark.parametrize(("seal", "error"), REFUSED)
def test_an_update_instruction_that_is_refused_changes_nothing(
    world: World, seal: Callable[[Instruction], Sealed], error: type[TrustError]
) -> None:
    world.agent.step()
    before = world.dump()
    with pytest.raises(error):
        world.agent.update(seal(world.ask()))
    world.agent.step()
    assert world.dump() == before


@pytest.mark.parametrize(("seal", "error"), REFUSED)
def test_a_report_instruction_that_is_refused_changes_nothing(
    world: World, seal: Callable[[Instruction], Sealed], error: type[TrustError]
) -> None:
    world.publish(2, "")
    world.agent.step()
    world.live(3)
    before = world.dump()
    with pytest.raises(error):
        world.agent.report(seal(world.ask_report()))
    assert world.dump() == before


def test_one_kind_of_instruction_cannot_be_used_as_the_other(world: World) -> None:
    with pytest.raises(SignatureError):
        world.agent.update(world.ask_report().sealed(COORDINATOR))
    with pytest.raises(SignatureError):
        world.agent.report(world.ask().sealed(COORDINATOR))


def test_an_ask_that_comes_while_a_session_is_learned_costs_no_second_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = InProcess.learn

    def asked_meanwhile(workshop: InProcess, node: Agent, wish: UpdateInstruction) -> None:
        assert world.update() is None
        real(workshop, node, wish)

    monkeypatch.setattr(InProcess, "learn", asked_meanwhile)
    assert world.update() is None
    world.agent.learn()
    world.agent.learn()
    assert len(list(world.agent.ledger.charges())) == 1
    assert world.update() is not None


def test_a_round_gets_one_update_the_same_bytes_however_often_it_asks(world: World) -> None:
    sealed = world.ask().sealed(COORDINATOR)
    assert world.agent.update(sealed) is None
    world.agent.step()
    first = world.agent.update(sealed)
    assert first is not None
    world.agent.step()
    assert world.agent.update(sealed) == first
    assert world.restart().update(sealed) == first
    update = world.update()
    assert update is not None
    assert (update.spent_mu2, update.ledger_seq) == (world.agent.ledger.spent_mu2("train/0"), 1)
    assert np.isfinite(decode(first.payload, 22)).all()
    assert world.agent.sent_bytes() == [len(first.sealed.body) + 64 + 88]


def test_a_node_that_nobody_asked_learns_nothing(world: World) -> None:
    world.hours_pass()
    world.agent.step()
    assert world.agent.ledger.head().seq == 0


@pytest.mark.parametrize(
    "wish", [{"base_digest": "0" * 64}, {"base": 9}], ids=["a base of other bytes", "a base that was not published"]
)
def test_a_base_that_is_not_the_signed_one_costs_nothing(world: World, wish: dict[str, Any]) -> None:
    sealed = replace(world.ask(), **wish).sealed(COORDINATOR)
    world.agent.update(sealed)
    world.agent.step()
    assert world.agent.update(sealed) is None
    assert world.agent.ledger.head().seq == 0
    assert world.events[-1][0] == "kept"


def test_a_spent_node_learns_no_more_and_answers_and_pulls_on(world: World) -> None:
    for round_ in (1, 2):
        assert world.update(round_) is None
        world.agent.step()
        assert world.update(round_) is not None
    assert 7.999 < world.agent.ledger.epsilon() <= 8.0
    world.update(3)
    world.agent.step()
    assert world.update(3) is None
    for _ in range(2):  # asked again and again, it says so once
        world.update(3)
        world.agent.step()
    [spent] = [fields for event, fields in world.events if event == "spent"]
    assert "is spent" in spent["reason"]
    world.publish(2, EVERYBODY)
    world.hours_pass()
    world.agent.step()
    assert world.says() == 2


def test_a_node_whose_task_cannot_be_loaded_says_so_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(*_: object) -> None:
        raise TaskError("task.py is not there")

    monkeypatch.setattr(InProcess, "learn", learn)
    for _ in range(3):
        world.update()
        world.agent.step()
    assert [event for event in world.events if event[0] == "cannot-learn"] == [
        ("cannot-learn", {"reason": "task.py is not there"})
    ]


def test_a_report_is_given_once_there_are_enough_windows(world: World) -> None:
    world.publish(2, "")
    world.agent.step()
    world.live(2)
    sealed = world.ask_report().sealed(COORDINATOR)
    assert world.agent.report(sealed) is None
    world.live(1)
    given = world.agent.report(sealed)
    assert given is not None
    assert Report.of(unseal("report", given, world.key.public_key())).quota == 3
    assert world.agent.report(sealed) == given


def test_I4_a_report_whose_charge_was_cut_short_is_charged_once_when_it_is_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise PowerCut

    world.publish(2, "")
    world.agent.step()
    world.live(3)
    sealed = world.ask_report().sealed(COORDINATOR)
    with monkeypatch.context() as patch:
        patch.setattr(Report, "sealed", cut)
        with pytest.raises(PowerCut):
            world.agent.report(sealed)
    assert world.agent.ledger.head().seq == 0
    assert world.restart().report(sealed) is not None
    assert world.agent.ledger.head().seq == 1


def shut_down(world: World) -> None:
    world.link.up = False


def let_metadata_expire(world: World) -> None:
    world.now += timedelta(days=400)


def empty_the_shelf(world: World) -> None:
    for path in (world.repository.folder / "metadata").iterdir():
        path.write_bytes(b"")


def forge_metadata(world: World) -> None:
    path = world.repository.folder / "metadata" / "timestamp.json"
    metadata = json.loads(path.read_bytes())
    metadata["signed"]["version"] += 1
    path.write_text(json.dumps(metadata))


def forge_weights(world: World) -> None:
    [path] = (world.repository.folder / "targets" / "releases" / "00000002").glob("*.weights.bin")
    path.write_bytes(bytes(len(path.read_bytes())))


def offer_an_older_shelf(world: World) -> None:
    """With a release that it was never offered; and it has lost its cache of what it saw."""
    older = shutil.copytree(world.repository.folder, world.folder / "older")
    world.repository.publish("rollout", {ROLLOUT_PATH: Rollout(1, "salt", EVERYBODY, serving=1).to_bytes()})
    world.agent.step()
    shutil.rmtree(world.folder / "node" / "trust")
    world.restart()
    shutil.rmtree(world.repository.folder)
    older.rename(world.repository.folder)
    world.now += timedelta(hours=2)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        pytest.param(forge_metadata, "signed", id="unsigned metadata"),
        pytest.param(forge_weights, "hash", id="unsigned weights"),
        pytest.param(let_metadata_expire, "expired", id="expired"),
        pytest.param(offer_an_older_shelf, "have seen", id="below the floor"),
    ],
)
def test_I6_nothing_unsigned_expired_or_below_the_floor_is_staged(
    world: World, trouble: Callable[[World], None], reason: str
) -> None:
    world.publish(2, EVERYBODY)
    world.now += timedelta(hours=2)
    trouble(world)
    world.agent.step()
    assert reason in world.events[-1][1]["reason"]
    assert world.agent.stages.newest() == world.says() == 1


@pytest.mark.parametrize("trouble", [shut_down, let_metadata_expire, empty_the_shelf, forge_metadata])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_I3_a_node_answers_in_every_state_of_the_coordinator_and_changes_nothing(
    world: World, trouble: Callable[[World], None], restarted: bool
) -> None:
    world.publish(2, EVERYBODY)
    world.now += timedelta(hours=2)
    trouble(world)
    if restarted:
        world.restart()
    history = world.agent.stages.history()
    world.agent.step()
    assert world.says() == 1
    assert world.agent.stages.history() == history
    assert world.events[-1][0] == "kept"


def test_I3_a_node_that_was_offline_catches_up(world: World) -> None:
    shut_down(world)
    world.publish(2, EVERYBODY)
    world.hours_pass()
    world.agent.step()
    assert world.says() == 1
    world.link.up = True
    world.hours_pass(RETRY_INTERVAL / timedelta(hours=1))
    world.agent.step()
    assert world.says() == 2


def test_how_far_a_node_is_behind_is_known_from_the_last_rollout_that_it_verified(world: World) -> None:
    """A release on trial is none that it lacks; while it is cut off, its last pull ages."""

    def figures() -> tuple[float, float]:
        gauges = NodeGauges(world.agent.folder, world.agent.ledger.budget, lambda: world.now).read()
        found = {gauge.name.removeprefix("edgefleet_"): gauge.value for gauge in gauges}
        return found["releases_behind"], found["last_pull_age_seconds"]

    world.publish(2, "")
    world.hours_pass()
    world.agent.step()
    assert figures() == (0, 0)
    world.repository.publish("rollout", {ROLLOUT_PATH: Rollout(3, "salt", EVERYBODY, serving=3).to_bytes()})
    world.hours_pass()
    world.agent.step()
    assert figures() == (2, 0)
    shut_down(world)
    world.restart()
    world.hours_pass(5)
    world.agent.step()
    assert figures() == (2, 5 * 3600)


def test_a_node_that_was_offline_for_long_comes_back_at_a_moment_of_its_own(world: World) -> None:
    """A release is large: half of a fleet that lost its link must not fetch it in one minute."""
    shut_down(world)
    world.publish(2, EVERYBODY)
    for _ in range(10):
        world.hours_pass(1)
        world.agent.step()
    world.link.up = True
    world.update(round_=2, base=2)
    world.agent.step()
    assert world.update(round_=2, base=2) is not None, "a base is fetched for the round that asks"
    waited = 0
    while world.agent.stages.newest() == 1:
        world.hours_pass(1 / 60)
        world.agent.step()
        waited += 1
    assert 30 <= waited <= 60


@pytest.mark.parametrize("x", [np.zeros(3, np.float32), np.zeros(2), np.full(2, np.nan, np.float32)])
def test_a_reading_that_is_not_what_was_declared_is_refused_and_not_kept(world: World, x: Any) -> None:
    with pytest.raises(InputError):
        world.agent.answer(x)
    assert world.agent.shadow.next_seq() == 0


def test_I11_a_full_disk_stops_the_record_and_not_the_answers(world: World) -> None:
    store = world.agent._store
    (pages,) = store.execute("pragma page_count").fetchone()
    store.execute(f"pragma max_page_count = {pages}")
    seq: int | None = 0
    for _ in range(3000):
        seq, answer = world.agent.answer(X)
        if seq is None:
            break
    assert seq is None
    assert answer.label == 1
    world.update()
    world.agent.step()
    assert world.says() == 1
    assert "unrecorded" in {event for event, _ in world.events}
    store.execute("pragma max_page_count = 1000000")
    assert world.agent.answer(X)[0] is not None


def test_a_folder_that_was_never_provisioned_is_not_a_node(bare: World) -> None:
    with pytest.raises(TrustError, match="was never provisioned"):
        bare.restart()


def test_a_node_has_nothing_to_answer_with_before_its_first_release(bare: World) -> None:
    shut_down(bare)
    with pytest.raises(LinkError):
        bare.provision()
    with pytest.raises(TrustError, match="no release to answer with"):
        bare.restart().answer(X)


def test_an_altered_ledger_stops_the_node(world: World) -> None:
    world.update()
    world.agent.step()
    world.agent._store.executescript("drop trigger charge_kept; update charge set mu2 = 1")
    with pytest.raises(TamperedError):
        world.restart()


def test_provisioning_that_was_interrupted_goes_on_as_the_same_node(bare: World) -> None:
    shut_down(bare)
    with pytest.raises(LinkError):
        bare.provision()
    bare.link.up = True
    bare.key = THIEF  # what a second provisioning would give it
    bare.provision()
    assert bare.says() == 1
    assert bare.agent.public_key != THIEF.public_key()


STEPS: list[tuple[Any, str, int]] = [  # and how often it happens in a while
    (durable, "write", 5),
    (SqliteFloors, "raise_to", 10),
    (StageLog, "append", 5),
    (Slots, "store", 1),
    (Slots, "point", 4),
    (Slots, "clear", 4),
    (Shadow, "record", 3),
    (Shadow, "compare", 4),
    (Shadow, "label", 3),
    (Ledger, "charge", 1),
    (Outbox, "put", 1),
    (Outbox, "answer", 2),
]


def cut_power(patch: pytest.MonkeyPatch, owner: Any, name: str, *, call: int, after: bool) -> None:
    real, calls = getattr(owner, name), iter(range(10_000))

    def cut(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            if after:
                real(*args, **kwargs)
            raise PowerCut
        return real(*args, **kwargs)

    patch.setattr(owner, name, cut)


def live_a_while(world: World) -> None:
    """Learn for round 1, send it, and bring release 2 into service."""
    world.update()
    world.agent.step()
    world.update()
    for _ in range(3):
        world.live(1)


def test_the_moments_at_which_a_node_is_killed_are_all_there_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[tuple[Any, str]] = Counter()

    def counted(owner: Any, name: str) -> Any:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[owner, name] += 1
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(agent_module, "POLL_INTERVAL", timedelta(0))
    world.publish(2, EVERYBODY)
    for owner, name, _ in STEPS:
        monkeypatch.setattr(owner, name, counted(owner, name))
    live_a_while(world)
    assert counts == {(owner, name): times for owner, name, times in STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(owner, name, call, id=f"{owner.__name__}.{name} {call}")
        for owner, name, times in STEPS
        for call in range(times)
    ],
)
def test_a_node_killed_in_the_middle_of_anything_goes_on_and_loses_only_budget(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool, call: int
) -> None:
    monkeypatch.setattr(agent_module, "POLL_INTERVAL", timedelta(0))
    world.publish(2, EVERYBODY)
    with monkeypatch.context() as patch:
        cut_power(patch, owner, name, call=call, after=after)
        with pytest.raises(PowerCut):
            live_a_while(world)
    world.restart()
    assert world.says() in (1, 2)
    live_a_while(world)
    assert world.agent.stages.stage(2) is Stage.COMMITTED
    assert world.says() == 2
    sent = world.update()
    assert sent is not None
    (sessions,) = world.agent._store.execute("select count(*) from session").fetchone()
    assert sessions <= world.agent.ledger.head().seq <= 2
    assert world.agent.ledger.epsilon() <= 8.0


def test_a_replayed_instruction_does_not_take_a_later_rounds_session(world: World) -> None:
    world.agent.update(world.ask(2).sealed(COORDINATOR))
    world.agent.step()
    with pytest.raises(DowngradeError, match="have seen round 2"):
        world.agent.update(world.ask(1).sealed(COORDINATOR))
    assert world.update(2) is not None


def test_I3_a_node_that_cannot_repair_a_release_promotes_and_goes_back_as_the_rollout_says(world: World) -> None:
    world.publish(2, EVERYBODY)
    world.agent.step()
    world.live(2)
    assert world.agent.stages.stage(2) is Stage.COMMITTED
    (world.folder / "node" / "slots" / "00000001" / "artifact.onnx").write_bytes(b"")
    world.link.lost = "releases/00000001/"
    world.publish(3, EVERYBODY)
    world.hours_pass()
    world.agent.step()
    assert "unrepaired" in {event for event, _ in world.events}
    assert world.says() == 3
    world.publisher.rollout(Rollout(3, "salt", EVERYBODY, halted=True, serving=1))
    world.hours_pass()
    world.agent.step()
    assert world.says() == 2


def test_what_was_damaged_is_asked_for_again_soon_and_then_ever_more_rarely(world: World) -> None:
    world.agent.step()
    (world.folder / "node" / "slots" / "00000001" / "artifact.onnx").write_bytes(b"")
    world.link.lost = "releases/"
    world.agent.pull_soon()
    for _ in range(120):
        world.agent.step()
        world.now += timedelta(minutes=1)
    tries = sum(event == "unrepaired" for event, _ in world.events)
    assert 5 <= tries <= 12
    world.link.lost = "nothing"
    world.restart()
    assert world.agent.serving.active is None
    world.agent.step()
    assert world.says() == 1


def test_news_of_the_shelf_that_comes_while_it_is_read_has_it_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = InProcess.pull

    def pull(workshop: InProcess, agent: Agent) -> Rollout | None:
        rollout = real(workshop, agent)
        if agent.stages.newest() == 1:
            world.publish(2, EVERYBODY)
            agent.pull_soon()
        return rollout

    monkeypatch.setattr(InProcess, "pull", pull)
    for _ in range(2):
        world.agent.step()
    assert world.says() == 2


def test_a_clock_that_was_ahead_when_a_pull_failed_does_not_stop_the_polls(world: World) -> None:
    world.agent.step()
    true = world.now
    world.publish(2, EVERYBODY)
    world.agent.pull_soon()
    world.now = true + timedelta(days=360)  # the shelf's metadata is long expired by then
    world.agent.step()
    world.now = true
    for _ in range(24):
        world.now += timedelta(hours=1)
        world.repository.heartbeat()
        world.agent.step()
    assert world.says() == 2


def test_a_clock_that_was_ahead_when_a_release_did_not_load_does_not_stop_its_trial(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StoreError("no memory for it now")

    world.publish(2, EVERYBODY)
    world.agent.step()
    true = world.now
    world.now = true + timedelta(days=360)
    with monkeypatch.context() as patch:
        patch.setattr(Serving, "settle", full)
        world.agent.step()
    world.now = true + timedelta(seconds=1)
    settled: list[bool] = []
    monkeypatch.setattr(Serving, "settle", lambda *_: settled.append(True))
    world.agent.mind()
    assert settled


def test_a_node_that_followed_a_coordinator_far_ahead_answers_on_and_is_set_right_by_hand(world: World) -> None:
    """As docs/deployment.md says."""
    true = world.now
    world.now = true + timedelta(days=200)
    world.repository.heartbeat()
    world.agent.step()
    world.now = true + timedelta(days=2)
    world.publish(2, EVERYBODY)
    world.restart().step()
    assert world.says() == 1
    with closing(sqlite3.connect(world.agent.folder / "node.db")) as store, store:
        store.execute("delete from floor where name = 'clock'")
    world.restart().step()
    assert world.says() == 2


def test_an_old_instruction_stays_expired_when_the_clock_goes_back(world: World) -> None:
    old = world.ask(1).sealed(COORDINATOR)
    world.now += timedelta(days=3)
    world.repository.heartbeat()
    world.agent.step()
    world.now -= timedelta(days=3)
    with pytest.raises(ExpiredError):
        world.agent.update(old)


def test_a_new_node_begins_with_what_everybody_may_serve_while_a_rollout_runs(bare: World) -> None:
    bare.publish(2, "")
    active = bare.provision().serving.active
    assert active is not None
    assert active.release == 1


def test_a_release_that_the_device_could_not_load_now_is_tried_again_in_a_minute(world: World) -> None:
    tries: list[int] = []

    def short_of_memory(_: Path, release: Release, *__: Any) -> None:
        tries.append(release.number)
        if len(tries) < 3:
            raise StoreError("short of memory")

    world.agent.serving._admit = short_of_memory
    world.publish(2, EVERYBODY)
    world.hours_pass()
    for _ in range(5):
        world.agent.step()
    assert (tries, world.agent.stages.stage(2), world.says()) == ([2], Stage.STAGED, 1)
    for _ in range(2):
        world.now += RETRY_INTERVAL
        world.agent.step()
    assert (tries, world.says()) == ([2, 2, 2], 2)


def test_a_node_that_was_away_takes_what_everybody_serves_before_what_is_still_in_shadow(world: World) -> None:
    world.link.up = False
    world.publish(2, EVERYBODY)
    world.publisher.rollout(Rollout(2, "salt", EVERYBODY, serving=2))
    world.publish(3, "")
    world.publisher.rollout(Rollout(3, "salt", "", serving=2))
    world.link.up = True
    for _ in range(2):
        world.hours_pass()
        world.agent.step()
    assert world.agent.stages.candidate() == (2, Stage.PROBATION)
    world.publisher.rollout(Rollout(3, "salt", "", halted=True, serving=2))
    for _ in range(3):
        world.hours_pass()
        world.agent.step()
    assert world.says() == 2
