"""Flower's SuperLink inside our process: its Fleet API is an ASGI app, its state is a transport and never the truth."""

import json
import secrets
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from flwr.app import Array, Error, Message
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    ErrorCode,
    SubStatus,
)
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore import date
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.state.schema.corestate_models import ObjectPushSession
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from coordinator.reply import Longest
from coordinator.waiting_grid import WaitingGrid
from fleet import flwr_compat
from fleet.errors import LinkError
from fleet.flwr_compat import Run

_KEY, _SIGNATURE, _TIME = (
    name.encode("ascii") for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
)
HEARTBEAT_S = 10.0  # Flower gives a run up after 60 s without one


class SuperLink:
    """Who may speak to us over Flower, and one run that lasts as long as this process."""

    def __init__(self, database: Path) -> None:
        """Open or make Flower's database; runs of processes that died are ended, and nothing of them is kept."""
        flwr_compat.quieten()
        self.app = create_app(_config(database), SuperLinkLifespan)
        self._state = self.app.state.linkstate_factory.state()
        for run in self._state.get_run_info():
            self._state.stop_run(run.run_id)
            self._state.cleanup_run(run.run_id)  # also of one that Flower gave up meanwhile

    def register(self, key: bytes) -> int:
        """Flower's id of the node with this public key in PEM; the same key has the same id."""
        known = self.find(key)
        if known is None:
            known = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
        if not known:
            raise LinkError("Flower could not register the node: try again")
        return known

    def find(self, key: bytes) -> int | None:
        """Flower's id of a registered node."""
        found: int | None = self._state.get_node_id_by_public_key(key)
        return found

    def knows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a registered node signed these headers lately: what Flower checks once it has read the body."""
        try:
            key = b64decode(headers[_KEY], validate=True)
            signature = b64decode(headers[_SIGNATURE], validate=True)
            age_s = (date.now() - datetime.fromisoformat(headers[_TIME].decode("ascii"))).total_seconds()
            fresh = -SYSTEM_TIME_TOLERANCE < age_s < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
            signed = fresh and verify_signature(bytes_to_public_key(key), headers[_TIME], signature)
        except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
            return False
        return signed and self.find(key) is not None

    def unregister(self, key: bytes) -> None:
        """From now on nothing that this key signed is listened to."""
        known = self.find(key)
        if known is not None:
            self._state.delete_node(NOOP_FLWR_AID, known)

    def online(self) -> set[int]:
        """Flower's ids of the nodes whose heartbeat is fresh."""
        return {info.node_id for info in self._state.get_node_info(statuses=["online"])}

    def grid(self, *, wait: Callable[[], None], longest: Longest) -> "EmbeddedGrid":
        """Begin the run of this process; no longer reply is read than ``longest``."""
        return EmbeddedGrid(self._state, wait=wait, longest=longest)


def own_replies(body: bytes) -> bool:
    """Whether all that a node pushes to Flower answers something, in its own name and under one table of contents.

    Flower checks a request's node against its key, but not a message's sender against either; it delivers what answers
    nothing as a question. Whether what is answered was asked of this node, and still is, it does check: a reply that
    comes too late is taken and dropped.
    """
    try:
        request = PushMessagesRequest.FromString(body)
    except Exception:  # noqa: BLE001 - a node may have sent anything
        return False
    replies = [message.metadata for message in request.messages_list]
    tables = [table.object_id for table in request.message_object_trees]
    return tables == [reply.message_id for reply in replies] != [] and all(
        reply.src_node_id == request.node.node_id and reply.reply_to_message_id for reply in replies
    )


class EmbeddedGrid(WaitingGrid):
    """Flower's Grid over the state beside it, without a network in between.

    Only replies whose every object has arrived are handed over, so that one slow upload holds nobody up.
    """

    def __init__(self, state: Any, *, wait: Callable[[], None], longest: Longest) -> None:
        super().__init__(wait)
        self._state = state
        self._longest = longest
        self._pending: set[str] = set()
        self._arriving: dict[str, Message] = {}
        self._beat = time.monotonic()
        self._begin()

    def set_run(self, run: Run) -> None:
        """Play another run."""
        self._run = run
        flwr_compat.identify(run.run_id)

    @property
    def run(self) -> Run:
        """The run being played."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes whose heartbeat is fresh."""
        self.stay_alive()
        ids: set[int] = self._state.get_nodes(self._run.run_id)
        return ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave messages for nodes to pull; the ids under which replies can be pulled, "" for a node that is gone."""
        self.stay_alive()
        with no_object_id_recompute():
            return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies that have arrived whole, one at a time in memory; an error for what can arrive no more.

        What answers another question waits until that one is asked about: a round and a rollout share the grid.
        """
        self.stay_alive()
        ids = set(message_ids)
        wanted = ids - self._arriving.keys()
        for reply in self._state.get_message_res(message_ids=wanted, run_id=self._run.run_id) if wanted else []:
            self._arriving[reply.metadata.reply_to_message_id] = reply
        for asked, reply in [(id_, reply) for id_, reply in self._arriving.items() if id_ in ids]:
            whole = self._whole(reply)
            if whole is not None:
                del self._arriving[asked]
                self._pending.discard(asked)
                self._state.delete_messages(message_ins_ids={asked})  # not before: its sender may have to send again
                self._state.object_store.delete(reply.metadata.message_id)
                yield whole

    def forget(self) -> None:
        """Take back every question without an answer: its round is over."""
        pending, self._pending = self._pending, set()
        self._arriving.clear()
        if not pending:
            return
        for reply in self._state.get_message_res(message_ids=set(pending), run_id=self._run.run_id):
            self._state.object_store.delete(reply.metadata.message_id)
        self._state.delete_messages(message_ins_ids=pending)
        for id_ in pending:
            self._state.object_store.delete(id_)

    def stay_alive(self) -> None:
        """Tell Flower that the run goes on; if it was given up meanwhile, begin another.

        Raises:
            LinkError: It was: nothing that was asked will be answered.
        """
        if time.monotonic() - self._beat < HEARTBEAT_S:
            return
        if not self._state.acknowledge_task_heartbeat(self._run.primary_task_id):
            self._pending.clear()
            self._arriving.clear()
            self._state.cleanup_run(self._run.run_id)
            self._begin()
            raise LinkError("Flower gave the run up, for this process was busy; another one begins")
        self._forget_sessions()
        self._beat = time.monotonic()

    def end(self) -> None:
        """End the run, as this process ends."""
        self._state.finish_task(self._run.primary_task_id, SubStatus.COMPLETED, "")
        self._state.cleanup_run(self._run.run_id)

    def _begin(self) -> None:
        state = self._state
        run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        run = state.get_run_info(run_ids=[run_id])[0]
        state.claim_task(run.primary_task_id)
        if not state.activate_task(run.primary_task_id):
            raise LinkError("Flower could not begin a run: try again")
        self._beat = time.monotonic()
        self.set_run(run)

    def _forget_sessions(self) -> None:
        """Flower opens a session for every reply that it is sent, and closes none of one that it drops."""
        with self._state.session() as session:
            sessions = session.query(ObjectPushSession).filter(ObjectPushSession.pending_count == 0)
            sessions.filter(ObjectPushSession.expires_at < date.now()).delete()

    def _push(self, message: Message) -> str:
        message_id: str = message.object_id
        flwr_compat.number(message, message_id)
        run_id = self._run.run_id
        session = self._state.start_session(run_id)
        bare = remove_content_from_message(message)
        stored, missing = self._state.store_message_and_object_tree(bare, get_object_tree(message), session)
        if not stored:
            return ""
        for object_id, part in get_all_nested_objects(message).items():
            if object_id in missing:
                self._state.store_object(run_id, session, object_id, part.deflate())
        self._pending.add(message_id)
        return message_id

    def _whole(self, reply: Message) -> Message | None:
        """The reply with its content; None while parts of it are under way."""
        contents: dict[str, bytes] = {}
        try:
            parts = [part.object_id for part in islice(iterate_object_tree(self._tree(reply)), self._longest.parts + 1)]
            if len(parts) > self._longest.parts:  # before any is looked for: each look costs
                return _failed(reply, "it has too many parts")
            size = 0
            for part in parts:
                content = self._state.get_object(self._run.run_id, part)
                if content == b"":
                    return None
                if content is None:
                    return _failed(reply, "a part of it never came")
                size += len(content)
                if size > self._longest.total:
                    return _failed(reply, "it is too long")
                contents[part] = content
            if _unfolded(contents) > self._longest.total:
                return _failed(reply, "it is too long")
            whole: Any = inflate_object_from_contents(reply.metadata.message_id, contents)
        except NoObjectInStoreError:
            return _failed(reply, "its parts never came")
        except Exception as error:  # noqa: BLE001 - a node may have sent anything
            return _failed(reply, f"it cannot be read: {type(error).__name__}")
        if not isinstance(whole, Message):
            return _failed(reply, "it is no message")
        return _as_stored(whole, reply)

    def _tree(self, reply: Message) -> Any:
        return self._state.object_store.get_object_tree(reply.metadata.message_id)


def _unfolded(contents: Mapping[str, bytes]) -> int:
    """Bytes of all arrays among the objects: one of zeros names a chunk honestly many times, and anybody may."""
    size = 0
    for content in contents.values():
        kind, chunks, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            named = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            size += sum(len(contents[chunks[index]]) for index in named)
    return size


def _as_stored(whole: Message, reply: Message) -> Message:
    """The content under the metadata that Flower checked: what the content says of itself was checked by nobody."""
    if whole.has_error():
        return make_message(metadata=reply.metadata, error=whole.error)
    return make_message(metadata=reply.metadata, content=whole.content)


def _failed(reply: Message, reason: str) -> Message:
    return make_message(metadata=reply.metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def _config(database: Path) -> SuperLinkLifespanConfig:
    """Nodes prove who they are; nothing is spawned; what is not served is guarded all the same."""
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secrets.token_bytes(32),
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )
