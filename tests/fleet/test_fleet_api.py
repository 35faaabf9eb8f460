"""Contracts with Flower's Fleet API, as one node uses it."""

import base64
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fleet import flwr_compat
from fleet.enrolment import pem
from fleet.errors import LinkError, RefusedError
from fleet.flwr_compat import FleetApi
from fleet.signing import sha256

IDENTITY = ("_run_id", "_node_id", "_task_id")
NODE = 1007


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """Afterwards this process is who it was."""
    before = {name: getattr(TaskIdentity, name) for name in IDENTITY}
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


class Canned:
    """Carries requests to a SuperLink that holds one message, and remembers what was asked."""

    def __init__(self, message: Message | None = None) -> None:
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        self.objects: dict[str, bytes] = {}
        self.pull = PullMessagesResponse()
        self.stored: dict[str, bytes] = {}
        self.is_stored = True
        if message is not None:
            self.hold(message)

    def hold(self, message: Message) -> None:
        flwr_compat.number(message, message.object_id)
        self.objects = {id_: part.deflate() for id_, part in get_all_nested_objects(message).items()}
        bare = message_to_proto(remove_content_from_message(message))
        self.pull = PullMessagesResponse(messages_list=[bare], message_object_trees=[get_object_tree(message)])

    def __call__(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        self.asked.append((path, body, dict(headers)))
        answer = getattr(self, path.removeprefix("/v1/fleet/").replace("-", "_"))(body)
        return bytes(answer.SerializeToString())

    def activate_node(self, body: bytes) -> ActivateNodeResponse:
        assert ActivateNodeRequest.FromString(body).public_key == b"pem"
        return ActivateNodeResponse(node_id=NODE)

    def send_node_heartbeat(self, body: bytes) -> SendNodeHeartbeatResponse:
        return SendNodeHeartbeatResponse(success=SendNodeHeartbeatRequest.FromString(body).node.node_id == NODE)

    def deactivate_node(self, body: bytes) -> DeactivateNodeResponse:
        assert DeactivateNodeRequest.FromString(body).node_id == NODE
        return DeactivateNodeResponse()

    def pull_messages(self, body: bytes) -> PullMessagesResponse:
        return self.pull

    def pull_object(self, body: bytes) -> PullObjectResponse:
        content = self.objects.get(PullObjectRequest.FromString(body).object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content
        )

    def confirm_message_received(self, body: bytes) -> ConfirmMessageReceivedResponse:
        return ConfirmMessageReceivedResponse()

    def push_messages(self, body: bytes) -> PushMessagesResponse:
        tree = PushMessagesRequest.FromString(body).message_object_trees[0]
        return PushMessagesResponse(
            objects_to_push=[part.object_id for part in iterate_object_tree(tree)], session_id="s"
        )

    def push_object(self, body: bytes) -> PushObjectResponse:
        request = PushObjectRequest.FromString(body)
        assert request.session_id == "s"
        self.stored[request.object_id] = request.object_content
        return PushObjectResponse(stored=self.is_stored)


def delivered(content: RecordDict, *, to: int = NODE) -> Message:
    flwr_compat.identify(42)
    return Message(content, to, "train.update")


def records() -> RecordDict:
    return RecordDict({"instruction": ConfigRecord({"body": b"body"})})


def received(post: Canned) -> Message | None:
    api = FleetApi(post)
    claim = api.claim(NODE)
    assert claim is not None
    return api.fetch(NODE, claim)


def test_a_message_is_claimed_fetched_and_answered_in_flowers_language() -> None:
    post = Canned(delivered(records()))
    api = FleetApi(post)
    assert api.activate(b"pem", 30.0) == NODE
    assert api.heartbeat(NODE, 30.0)
    assert not api.heartbeat(5, 30.0)
    claim = api.claim(NODE)
    assert claim is not None
    message = api.fetch(NODE, claim)
    assert message is not None
    assert message.content == records()
    assert message.metadata.message_id == claim.message_id
    api.confirm(NODE, claim)
    reply = Message(RecordDict({"delta": ArrayRecord({"delta": Array("f", (2,), "s", b"12345678")})}), reply_to=message)
    api.push(NODE, reply)
    inflated = inflate_object_from_contents(reply.metadata.message_id, dict(post.stored))
    assert isinstance(inflated, Message)
    assert inflated.content == reply.content
    assert inflated.metadata.reply_to_message_id == claim.message_id
    api.deactivate(NODE)


def test_only_flowers_fleet_routes_are_asked_and_never_for_code() -> None:
    from flwr.superlink.routers.fleet.router import router

    post = Canned(delivered(records()))
    api = FleetApi(post)
    message = received(post)
    assert message is not None
    api.push(NODE, Message(Error(2, "crashed"), reply_to=message))
    paths = {path for path, _, _ in post.asked}
    assert paths <= {getattr(route, "path", "") for route in router.routes}
    assert "/v1/fleet/get-fab" not in paths
    assert all(headers["content-type"] == "application/protobuf" for _, _, headers in post.asked)


def test_nothing_waits() -> None:
    assert FleetApi(Canned()).claim(NODE) is None


def test_a_message_whose_parts_are_still_being_sent_is_not_there_yet() -> None:
    post = Canned(delivered(records()))
    post.objects[next(iter(post.objects))] = b""
    assert received(post) is None


@pytest.mark.parametrize("how", ["gone", "altered", "array", "many", "elsewhere"])
def test_a_message_that_is_not_what_it_says_is_refused(how: str) -> None:
    content = records()
    if how == "array":  # its list of chunks may name one chunk a million times
        content = RecordDict({"a": ArrayRecord({"a": Array("f", (2,), "s", b"12345678")})})
    if how == "many":
        content = RecordDict({str(i): ConfigRecord({"i": i}) for i in range(flwr_compat.MAX_OBJECTS)})
    post = Canned(delivered(content, to=5 if how == "elsewhere" else NODE))
    first = next(iter(post.objects))
    if how == "gone":
        del post.objects[first]
    if how == "altered":
        post.objects[first] += b"x"
    with pytest.raises(RefusedError) as raised:
        received(post)
    assert raised.value.code == "message"


@pytest.fixture(scope="module")
def anything() -> tuple[Canned, FleetApi]:
    post = Canned()
    return post, FleetApi(post)


@given(st.binary(max_size=200))
def test_parts_of_any_bytes_are_refused(anything: tuple[Canned, FleetApi], data: bytes) -> None:
    post, api = anything
    claim = flwr_compat.Claim(sha256(data), 1, (sha256(data),))
    post.objects = {sha256(data): data or b"x"}
    with pytest.raises(RefusedError):
        api.fetch(NODE, claim)


@pytest.mark.parametrize(
    "head", [b"Message\x1f\x1f0\0", b"Message  0\0", b"RecordDict  2\0{}", b"Message " + b"a" * 64 + b" 0\0"]
)
def test_parts_with_a_plausible_head_are_refused_too(head: bytes) -> None:
    post = Canned()
    post.objects = {sha256(head): head}
    with pytest.raises(RefusedError):
        FleetApi(post).fetch(NODE, flwr_compat.Claim(sha256(head), 1, (sha256(head),)))


def test_an_answer_in_another_language_is_a_link_error() -> None:
    with pytest.raises(LinkError, match="language"):
        FleetApi(lambda path, body, headers: b"\xff\xff\xff").claim(NODE)


def test_a_reply_that_is_not_stored_is_not_taken_for_sent() -> None:
    post = Canned(delivered(records()))
    message = received(post)
    assert message is not None
    post.is_stored = False
    with pytest.raises(LinkError, match="did not store"):
        FleetApi(post).push(NODE, Message(records(), reply_to=message))


def test_a_reply_that_is_pushed_again_is_the_same_one() -> None:
    post = Canned(delivered(records()))
    message = received(post)
    assert message is not None
    reply = Message(records(), reply_to=message)
    for _ in range(2):
        FleetApi(post).push(NODE, reply)
    pushes = [body for path, body, _ in post.asked if path.endswith("push-messages")]
    assert pushes[0] == pushes[1]


def test_flower_takes_our_signature_of_the_coordinators_time() -> None:
    from flwr.superlink.routers.fleet import node_auth

    key = ec.generate_private_key(ec.SECP384R1())
    sent = flwr_compat.flower_headers(key, datetime.now(UTC))
    public_key = base64.b64decode(sent[node_auth.FLEET_HTTP_PUBLIC_KEY_HEADER])
    request: Any = SimpleNamespace(
        headers=sent,
        state=SimpleNamespace(protobuf_request=ActivateNodeRequest(public_key=public_key)),
    )
    assert public_key == pem(key.public_key())
    node_auth.authenticate_node(request)
    request.headers = flwr_compat.flower_headers(key, datetime.now(UTC) + timedelta(seconds=30))
    with pytest.raises(Exception, match="Invalid SuperNode"):  # if this fails, clocks need not be corrected any more
        node_auth.authenticate_node(request)


def test_a_stamped_reply_ends_when_its_ask_does() -> None:
    asked = delivered(records())
    flwr_compat.number(asked, "ask")
    reply = Message(records(), reply_to=asked)
    now = datetime.fromtimestamp(asked.metadata.created_at, UTC) + timedelta(seconds=100)
    flwr_compat.stamp(reply, asked, now)
    assert reply.metadata.created_at == pytest.approx(now.timestamp())
    assert reply.metadata.ttl == pytest.approx(asked.metadata.ttl - 100)
