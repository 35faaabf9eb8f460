"""Contracts with Flower's SuperLink, none of which is public: each does what we rely on."""

import json
import sqlite3
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_body,
    get_object_tree,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.state.schema.corestate_models import ObjectPushSession

from coordinator import superlink
from coordinator.flower_database import set_aside_if_damaged
from coordinator.reply import CHUNK, Longest
from coordinator.superlink import EmbeddedGrid, SuperLink, own_replies
from fleet import flwr_compat
from fleet.enrolment import pem
from fleet.errors import LinkError
from fleet.signing import sha256

MAX_BYTES = 100_000
FOLDED = "folded"


def key() -> bytes:
    return pem(ec.generate_private_key(ec.SECP384R1()).public_key())


class Node:
    """A node's side of Flower's state, without its HTTP."""

    def __init__(self, link: SuperLink) -> None:
        self.link = link
        self.key = key()
        self.id = link.register(self.key)
        self.state = link._state
        self.state.activate_node(self.id, 30)

    def receive(self) -> Message | None:
        return next(iter(self.state.get_message_ins(node_id=self.id, limit=1)), None)

    def send(self, reply: Message, *, without: int = 0) -> None:
        """Push a reply but its last ``without`` objects."""
        flwr_compat.number(reply, reply.object_id)
        run_id = reply.metadata.run_id
        session = self.state.start_session(run_id)
        stored, missing = self.state.store_message_and_object_tree(reply, get_object_tree(reply), session)
        assert stored
        objects = list(get_all_nested_objects(reply).items())
        for object_id, part in objects[: len(objects) - without]:
            if object_id in missing:
                assert self.state.store_object(run_id, session, object_id, part.deflate())
        self.rest = [
            (run_id, session, object_id, part.deflate()) for object_id, part in objects[len(objects) - without :]
        ]
        return [object_id for object_id, _ in objects[len(objects) - without :]]

    def send_rest(self) -> None:
        for part in self.rest:
            assert self.state.store_object(*part)

    def answer(self, data: bytes = b"delta", dtype: str = "float32") -> Message:
        asked = self.receive()
        assert asked is not None
        content = RecordDict({"delta": ArrayRecord({"delta": Array(dtype, (1,), "fleet.f32.v1", data)})})
        return Message(content, reply_to=asked)


@pytest.fixture
def link(tmp_path: Path) -> SuperLink:
    return SuperLink(tmp_path / "superlink.db")


@pytest.fixture
def grid(link: SuperLink) -> Iterator[EmbeddedGrid]:
    grid = link.grid(wait=lambda: time.sleep(0.01), longest=Longest(MAX_BYTES))
    yield grid
    grid.end()


def let_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an array of type ``FOLDED`` as one that names its only chunk over and over."""
    honest = Array.deflate

    def deflate(array: Array) -> bytes:
        if array.dtype != FOLDED:
            return honest(array)
        body = json.loads(get_object_body(honest(array), Array)) | {"arraychunk_ids": [0] * 20_000}
        return add_header_to_object_body(object_body=json.dumps(body).encode(), obj=array)

    monkeypatch.setattr(Array, "deflate", deflate)


def question(node: Node, text: str = "?", ttl: float = 60.0) -> Message:
    return Message(RecordDict({"instruction": ConfigRecord({"body": text})}), node.id, "train.update", ttl=ttl)


def test_a_key_has_one_id_for_ever_and_none_once_it_is_gone(tmp_path: Path, link: SuperLink) -> None:
    one, other = key(), key()
    first = link.register(one)
    assert link.register(one) == first == SuperLink(tmp_path / "superlink.db").register(one)
    assert link.register(other) != first
    link.unregister(one)
    link.unregister(one)
    assert link.find(one) is None


def test_a_node_is_known_by_what_it_signed_lately_and_nobody_else_is(link: SuperLink) -> None:
    mine, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    signed = {name.encode(): value.encode() for name, value in flwr_compat.flower_headers(mine, now).items()}
    assert not link.knows(signed)
    link.register(public_key_to_bytes(mine.public_key()))
    assert link.knows(signed)
    old = flwr_compat.flower_headers(mine, now - timedelta(hours=1))
    assert not link.knows({name.encode(): value.encode() for name, value in old.items()})
    other = flwr_compat.flower_headers(ec.generate_private_key(ec.SECP384R1()), now)
    assert not link.knows(signed | {b"flwr-signature": other["flwr-signature"].encode()})
    for name in signed:
        assert not link.knows({other: value for other, value in signed.items() if other != name})
        assert not link.knows(signed | {name: b"\xff nonsense"})
    link.unregister(public_key_to_bytes(mine.public_key()))
    assert not link.knows(signed)


def test_a_node_is_online_while_its_heartbeat_is_fresh(link: SuperLink, grid: EmbeddedGrid) -> None:
    node, silent = Node(link), link.register(key())
    assert set(grid.get_node_ids()) == link.online() == {node.id}
    assert silent not in link.online()
    link.unregister(node.key)
    assert set(grid.get_node_ids()) == link.online() == set()


def test_a_question_is_answered_once_and_nothing_is_left_behind(link: SuperLink, grid: EmbeddedGrid) -> None:
    nodes = [Node(link), Node(link)]
    ids = list(grid.push_messages([question(node) for node in nodes]))
    assert list(grid.pull_messages(ids)) == []
    for node in nodes:
        node.send(node.answer(str(node.id).encode()))
    replies = list(grid.pull_messages(ids))
    assert {reply.metadata.src_node_id for reply in replies} == {node.id for node in nodes}
    assert {reply.metadata.reply_to_message_id for reply in replies} == set(ids)
    given = {reply.content.array_records["delta"]["delta"].data for reply in replies}
    assert given == {str(node.id).encode() for node in nodes}
    assert nodes[0].receive() is None
    for id_ in ids:
        link._state.object_store.delete(id_)  # as a node does when it confirms
    assert (link._state.num_message_ins(), link._state.num_message_res(), len(link._state.object_store)) == (0, 0, 0)


def test_a_slow_upload_holds_nobody_up_and_comes_later(link: SuperLink, grid: EmbeddedGrid) -> None:
    slow, quick = Node(link), Node(link)
    ids = list(grid.push_messages([question(slow), question(quick)]))
    slow.send(slow.answer(), without=2)
    quick.send(quick.answer())
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids)] == [quick.id]
    assert list(grid.pull_messages([ids[0]])) == []
    slow.send_rest()
    assert [reply.metadata.src_node_id for reply in grid.pull_messages([ids[0]])] == [slow.id]


def test_a_reply_that_is_too_long_is_an_error_and_not_in_memory(link: SuperLink, grid: EmbeddedGrid) -> None:
    node = Node(link)
    ids = list(grid.push_messages([question(node)]))
    node.send(node.answer(bytes(MAX_BYTES)))
    [reply] = grid.pull_messages(ids)
    assert reply.has_error()
    assert "too long" in str(reply.error.reason)


def test_a_reply_that_names_one_chunk_many_times_is_too_long_before_it_is_unfolded(
    link: SuperLink, grid: EmbeddedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a megabyte would be gigabytes: an array names its chunks by a list of indices, and any of them again."""
    let_fold(monkeypatch)
    node = Node(link)
    ids = list(grid.push_messages([question(node)]))
    node.send(node.answer(bytes(10_000), FOLDED))
    tracemalloc.start()
    [reply] = grid.pull_messages(ids)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    assert reply.has_error()
    assert "too long" in str(reply.error.reason)


def test_an_array_of_zeros_names_its_one_chunk_honestly_many_times(link: SuperLink) -> None:
    zeros = bytes(3 * CHUNK)
    grid = link.grid(wait=lambda: None, longest=Longest.of(len(zeros) // 4))
    node = Node(link)
    ids = list(grid.push_messages([question(node)]))
    node.send(node.answer(zeros))
    [reply] = grid.pull_messages(ids)
    assert reply.content.array_records["delta"]["delta"].data == zeros
    grid.end()


def test_a_table_of_contents_that_is_too_long_is_an_error_before_any_part_came(
    link: SuperLink, grid: EmbeddedGrid
) -> None:
    """Else each look at it would go on for as long as its sender may take to bring the rest."""
    node = Node(link)
    ids = list(grid.push_messages([question(node)]))
    reply = node.answer()
    flwr_compat.number(reply, reply.object_id)
    names = [sha256(str(number).encode()) for number in range(Longest(MAX_BYTES).parts)]
    table = ObjectTree(object_id=reply.object_id, children=[ObjectTree(object_id=name) for name in names])
    session = link._state.start_session(reply.metadata.run_id)
    assert link._state.store_message_and_object_tree(reply, table, session)[0]
    [heard] = grid.pull_messages(ids)
    assert heard.has_error()
    assert "too many parts" in str(heard.error.reason)
    assert link._state.num_message_res() == 0


def test_a_reply_bears_the_sender_that_flower_checked_and_not_the_one_it_claims(
    link: SuperLink, grid: EmbeddedGrid
) -> None:
    node, victim = Node(link), Node(link)
    ids = list(grid.push_messages([question(node), question(victim)]))
    forged = node.answer()
    forged.metadata.__dict__["_src_node_id"] = victim.id
    forged.metadata.__dict__["_reply_to_message_id"] = ids[0]
    with pytest.raises(AssertionError):  # Flower takes it from nobody but the node that was asked
        node.send(forged)


def pushed(**changes: Any) -> bytes:
    """What node 7 sends to reply to what it was asked, but for ``changes`` of the message's metadata."""
    flwr_compat.identify(42)
    asked = Message(RecordDict(), 7, "train.update")
    flwr_compat.number(asked, sha256(b"asked"))
    reply = Message(RecordDict(), reply_to=asked)
    flwr_compat.number(reply, reply.object_id)
    tree = get_object_tree(reply)
    for name, value in changes.items():
        reply.metadata.__dict__[f"_{name}"] = value
    request = PushMessagesRequest(
        node=NodeProto(node_id=7), messages_list=[message_to_proto(reply)], message_object_trees=[tree]
    )
    return bytes(request.SerializeToString())


@pytest.mark.parametrize(
    ("body", "own"),
    [
        pytest.param(lambda: pushed(), True, id="a reply"),
        pytest.param(lambda: pushed(reply_to_message_id=""), False, id="a question"),
        pytest.param(lambda: pushed(src_node_id=8), False, id="in another's name"),
        pytest.param(lambda: pushed(src_node_id=flwr_compat.COORDINATOR_ID), False, id="in our name"),
        pytest.param(lambda: pushed(message_id=sha256(b"other")), False, id="under another table"),
        pytest.param(lambda: pushed() + pushed(src_node_id=8), False, id="a reply and another's"),
        pytest.param(lambda: b"", False, id="nothing"),
        pytest.param(lambda: b"\xff", False, id="nonsense"),
    ],
)
def test_a_node_pushes_replies_in_its_own_name(body: Callable[[], bytes], own: bool) -> None:
    assert own_replies(body()) is own


def test_a_node_that_went_away_is_an_error_at_once(link: SuperLink, grid: EmbeddedGrid) -> None:
    node = Node(link)
    ids = list(grid.push_messages([question(node)]))
    link._state.deactivate_node(node.id)
    [reply] = grid.pull_messages(ids)
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == ids[0]


def test_a_question_that_was_not_answered_in_time_is_void(link: SuperLink, grid: EmbeddedGrid) -> None:
    node = Node(link)
    ids = list(grid.push_messages([question(node, ttl=0.3)]))
    node.receive()
    time.sleep(0.4)
    [reply] = grid.pull_messages(ids)
    assert reply.has_error()


def test_a_question_to_nobody_has_no_id(link: SuperLink, grid: EmbeddedGrid) -> None:
    node = Node(link)
    link.unregister(node.key)
    assert list(grid.push_messages([question(node)])) == [""]


def test_what_was_not_answered_when_a_round_ends_is_taken_back(link: SuperLink, grid: EmbeddedGrid) -> None:
    silent, late = Node(link), Node(link)
    grid.push_messages([question(silent), question(late)])
    late.send(late.answer())
    grid.forget()
    assert silent.receive() is None
    assert (link._state.num_message_ins(), link._state.num_message_res(), len(link._state.object_store)) == (0, 0, 0)


def test_send_and_receive_waits_for_all_or_until_it_takes_too_long(link: SuperLink, grid: EmbeddedGrid) -> None:
    quick, silent = Node(link), Node(link)
    asked = iter(grid.send_and_receive([question(quick), question(silent)], timeout=0.5))
    waited = 0

    def wait() -> None:
        nonlocal waited
        waited += 1
        if waited == 1:
            quick.send(quick.answer())
        time.sleep(0.05)

    grid._wait = wait
    began = time.monotonic()
    assert [reply.metadata.src_node_id for reply in asked] == [quick.id]
    assert 0.4 < time.monotonic() - began < 5


def test_a_run_that_flower_gave_up_is_followed_by_another(
    link: SuperLink, grid: EmbeddedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, before = Node(link), grid.run.run_id
    grid.push_messages([question(node)])
    link._state.stop_run(before)
    monkeypatch.setattr(superlink, "HEARTBEAT_S", 0.0)
    with pytest.raises(LinkError, match="another one begins"):
        grid.stay_alive()
    assert grid.run.run_id != before
    [id_] = grid.push_messages([question(node, "again")])
    node.send(node.answer())
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages([id_])] == [id_]


def test_a_run_of_a_process_that_died_is_ended_by_the_next(tmp_path: Path, link: SuperLink) -> None:
    link.grid(wait=lambda: None, longest=Longest(MAX_BYTES))
    again = SuperLink(tmp_path / "superlink.db")
    assert again._state.get_run_info(statuses=["pending", "starting", "running"]) == []


def sessions(link: SuperLink) -> int:
    with link._state.session() as session:
        return int(session.query(ObjectPushSession).count())


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(lambda folder, _: SuperLink(folder / "superlink.db"), id="down for longer than Flower waits"),
        pytest.param(lambda _, grid: grid.stay_alive(), id="too busy"),
    ],
)
def test_nothing_is_kept_of_a_run_that_flower_gave_up(
    tmp_path: Path, link: SuperLink, monkeypatch: pytest.MonkeyPatch, again: Callable[[Path, EmbeddedGrid], object]
) -> None:
    grid, node = link.grid(wait=lambda: None, longest=Longest(MAX_BYTES)), Node(link)
    grid.push_messages([question(node)])
    node.send(node.answer())
    link._state.finish_task(grid.run.primary_task_id, "failed", "No heartbeat received from the task")
    monkeypatch.setattr(superlink, "HEARTBEAT_S", 0.0)
    with suppress(LinkError):
        again(tmp_path, grid)
    assert (link._state.num_message_ins(), link._state.num_message_res(), len(link._state.object_store)) == (0, 0, 0)


def test_a_reply_that_becomes_whole_while_another_is_asked_about_is_kept_until_it_is(
    link: SuperLink, grid: EmbeddedGrid
) -> None:
    """A round and a rollout share the grid: an upload is not sent again for being whole at the other's look."""
    slow, other = Node(link), Node(link)
    [update, report] = grid.push_messages([question(slow), question(other)])
    slow.send(slow.answer(), without=2)
    assert list(grid.pull_messages([update])) == []
    slow.send_rest()
    assert list(grid.pull_messages([report])) == []
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(iter([update]))] == [update]


def test_what_a_node_pushes_that_flower_drops_is_forgotten_and_an_upload_under_way_is_not(
    link: SuperLink, grid: EmbeddedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower opens a session before it looks at what came, and closes none by itself."""
    node, other, state = Node(link), Node(link), link._state
    ids = list(grid.push_messages([question(node), question(other)]))
    node.send(node.answer(), without=2)
    dropped = other.answer()
    dropped.metadata.__dict__["_reply_to_message_id"] = sha256(b"never asked")
    flwr_compat.number(dropped, dropped.object_id)
    for _ in range(3):
        session_id = state.start_session(grid.run.run_id)
        assert state.store_message_and_object_tree(dropped, get_object_tree(dropped), session_id) == (False, [])
    assert sessions(link) == 4
    monkeypatch.setattr(superlink, "HEARTBEAT_S", 0.0)
    grid.stay_alive()
    assert sessions(link) == 4  # each may be of a message that Flower is just about to take
    later = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr(superlink, "date", SimpleNamespace(now=lambda: later))
    grid.stay_alive()
    assert sessions(link) == 1
    node.send_rest()
    assert [heard.has_error() for heard in grid.pull_messages(ids)] == [False]
    assert sessions(link) == 0


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def torn(data: bytes) -> bytes:
    """One page in the middle is another's."""
    middle = len(data) // 8192 * 4096
    return data[:middle] + b"\xaa" * 4096 + data[middle + 4096 :]


@pytest.mark.parametrize("damage", [lambda data: b"no database" * 500, cut_short, torn])
def test_a_damaged_database_is_set_aside_and_another_begun(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    database, mine, events = tmp_path / "superlink.db", key(), list[tuple[str, dict[str, object]]]()
    SuperLink(database).register(mine)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    sound = database.read_bytes()
    set_aside_if_damaged(database, lambda event, **fields: events.append((event, fields)))
    assert (database.read_bytes(), events) == (sound, [])
    database.write_bytes(damage(sound))
    set_aside_if_damaged(database, lambda event, **fields: events.append((event, fields)))
    [(event, fields)] = events
    assert (event, fields["path"]) == ("flower-database-lost", f"{database}.damaged")
    assert Path(f"{database}.damaged").read_bytes() == damage(sound)
    assert [path.name for path in tmp_path.glob("superlink.db*") if "damaged" not in path.name] == []
    assert SuperLink(database).find(mine) is None


def test_an_error_of_a_node_comes_through(link: SuperLink, grid: EmbeddedGrid) -> None:
    node = Node(link)
    ids = list(grid.push_messages([question(node)]))
    asked = node.receive()
    assert asked is not None
    node.send(Message(Error(2, "crashed"), reply_to=asked))
    [reply] = grid.pull_messages(ids)
    assert (reply.has_error(), reply.error.reason) == (True, "crashed")


def test_a_reply_whose_parts_were_forgotten_is_an_error(link: SuperLink, grid: EmbeddedGrid) -> None:
    node = Node(link)
    ids = list(grid.push_messages([question(node)]))
    reply = node.answer()
    node.send(reply)
    link._state.object_store.delete(reply.metadata.message_id)
    [heard] = grid.pull_messages(ids)
    assert heard.has_error()
    assert "never came" in str(heard.error.reason)


def test_a_run_that_ended_is_over_for_flower_too(link: SuperLink) -> None:
    grid = link.grid(wait=lambda: None, longest=Longest(MAX_BYTES))
    node = Node(link)
    grid.push_messages([question(node)])
    grid.end()
    [run] = link._state.get_run_info(run_ids=[grid.run.run_id])
    assert (run.status.status, run.status.sub_status) == ("finished", "completed")
    assert link._state.num_message_ins() == 0
