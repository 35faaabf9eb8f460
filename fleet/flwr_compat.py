"""Everything of Flower that is not public, or not for long, in one place, with a contract test for each name."""

import importlib.util
import logging
import os
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.serverapp import ServerApp
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    get_object_type_from_object_content,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from httpx import Response

from fleet.errors import LinkError, MissingExtraError, RefusedError
from fleet.signing import sha256

__all__ = [
    "COORDINATOR_ID",
    "Claim",
    "FleetApi",
    "Run",
    "ascribe",
    "context",
    "empty_run",
    "flower_headers",
    "identify",
    "number",
    "of_no_run",
    "quieten",
    "simulate",
    "stamp",
]

MAX_OBJECTS = 8  # of one message to a node: ours have three
PARALLEL = 4
_KINDS = ("content-type", "accept")
_READABLE = {"Message", "RecordDict", "ConfigRecord"}  # an Array may name one chunk a million times
A = TypeVar("A")
T = TypeVar("T")
COORDINATOR_ID = 1


def quieten() -> None:
    """Keep Flower's logger, which sets its own level and handlers on import, to what ours is set to."""
    logger = logging.getLogger("flwr")
    logger.handlers.clear()
    logger.setLevel(logging.getLogger().getEffectiveLevel())


def identify(run_id: int) -> None:
    """Say which run this process plays: ``Message`` cannot be made before. One run a process."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = COORDINATOR_ID
    TaskIdentity.task_id = 0


def number(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would."""
    message.metadata.__dict__["_message_id"] = message_id


def ascribe(message: Message, node_id: int) -> None:
    """Give a message another sender."""
    message.metadata.__dict__["_src_node_id"] = node_id


def of_no_run(content: RecordDict, message_type: str) -> Message:
    """A message that was never sent: it can be made by a process that plays no run."""
    message: Any = Message
    made: Message = message(content, metadata=Metadata(0, "", 0, 0, "", "", 0.0, DEFAULT_TTL, message_type))
    return made


def empty_run(run_id: int) -> Run:
    """A run that no SuperLink knows."""
    return Run.create_empty(run_id=run_id)


def context(run_id: int, node_id: int) -> Context:
    """The context that a runtime would hand to an app."""
    return Context(run_id=run_id, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


def simulate(server: ServerApp, client: ClientApp, *, nodes: int) -> None:
    """Run two apps in Flower's own simulation, with one of Ray's processes a core; afterwards Ray is shut down.

    Flower deprecates ``run_simulation`` in favour of ``flwr run``, which plays installed code and no objects.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("Flower's simulation needs Ray: pip install 'edgefleet[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray phones home otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of what it will do one day
    from flwr.simulation import run_simulation

    quieten()
    config: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"log_to_driver": False}}
    run_simulation(server, client, num_supernodes=nodes, backend_config=config)


class Post(Protocol):
    """Carries one request to the coordinator and brings the body of its answer; raises our errors."""

    def __call__(self, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """Add who asks to ``headers`` and POST ``body`` to ``path``."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A message that the SuperLink gave to this node, and to nobody else; its content is fetched separately."""

    message_id: str
    run_id: int
    objects: tuple[str, ...]


class FleetApi:
    """Flower's Fleet API as one node uses it. It never asks for a run's code: GetFab is not called anywhere.

    Flower's client says what is sent where; ``post`` carries it, so that pinning, limits and errors are ours.
    """

    def __init__(self, post: Post) -> None:
        # Its own HTTP client is never used, so it has nothing to verify.
        self._client = FleetHttpClient("http://coordinator", interceptors=[_Carrier(post)], verify=False)

    def activate(self, public_key: bytes, interval_s: float) -> int:
        """Come online as the node that is registered with this key (PEM); its id."""
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=interval_s)
        return int(_understood(lambda: self._client.ActivateNode(request)).node_id)

    def heartbeat(self, node_id: int, interval_s: float) -> bool:
        """Stay or come online for twice ``interval_s``; False if the SuperLink does not know the node."""
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=interval_s)
        return bool(_understood(lambda: self._client.SendNodeHeartbeat(request)).success)

    def deactivate(self, node_id: int) -> None:
        """Go offline."""
        _understood(lambda: self._client.DeactivateNode(DeactivateNodeRequest(node_id=node_id)))

    def claim(self, node_id: int) -> Claim | None:
        """Take the oldest message for this node, if there is one.

        Raises:
            LinkError: The link failed; what was claimed may be lost, and its sender asks again.
        """
        answer = _understood(lambda: self._client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id))))
        if not answer.messages_list or not answer.message_object_trees:
            return None
        tree = answer.message_object_trees[0]
        objects = tuple(dict.fromkeys(part.object_id for part in islice(iterate_object_tree(tree), MAX_OBJECTS + 1)))
        return Claim(tree.object_id, answer.messages_list[0].metadata.run_id, objects)

    def fetch(self, node_id: int, claim: Claim) -> Message | None:
        """The claimed message; None while its sender is still bringing its parts.

        Raises:
            RefusedError: It is gone, too large, or not what its name says.
        """
        if len(claim.objects) > MAX_OBJECTS:
            raise RefusedError("message", f"a message of more than {MAX_OBJECTS} parts")

        def pull(object_id: str) -> bytes:
            request = PullObjectRequest(node=Node(node_id=node_id), run_id=claim.run_id, object_id=object_id)
            answer = _understood(lambda: self._client.PullObject(request))
            if not answer.object_found:
                raise RefusedError("message", "the message is gone")
            if answer.object_available and sha256(answer.object_content) != object_id:
                raise RefusedError("message", "a part of the message is not what its name says")
            return bytes(answer.object_content)

        contents = dict(zip(claim.objects, _together(pull, claim.objects), strict=True))
        return _inflated(claim, contents, node_id) if all(contents.values()) else None

    def confirm(self, node_id: int, claim: Claim) -> None:
        """Let the SuperLink forget the message's parts."""
        request = ConfirmMessageReceivedRequest(
            node=Node(node_id=node_id), run_id=claim.run_id, message_object_id=claim.message_id
        )
        _understood(lambda: self._client.ConfirmMessageReceived(request))

    def push(self, node_id: int, reply: Message) -> None:
        """Send a reply. Doing it again after it failed half-way stores it once.

        Raises:
            LinkError: The link failed.
            RefusedError: Nobody waits for it any more.
        """
        with no_object_id_recompute():
            number(reply, reply.object_id)
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            request = PushMessagesRequest(
                node=Node(node_id=node_id),
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],  # how long a node computes is nobody's business
            )
            answer = _understood(lambda: self._client.PushMessages(request))
            wanted = [(id_, objects[id_].deflate()) for id_ in answer.objects_to_push if id_ in objects]
        run_id, session_id = reply.metadata.run_id, answer.session_id

        def put(part: tuple[str, bytes]) -> None:
            request = PushObjectRequest(
                node=Node(node_id=node_id),
                run_id=run_id,
                object_id=part[0],
                object_content=part[1],
                session_id=session_id,
            )
            if not _understood(lambda: self._client.PushObject(request)).stored:
                raise LinkError("the SuperLink did not store a part of the reply")

        _together(put, wanted)


def flower_headers(key: EllipticCurvePrivateKey, now: datetime) -> dict[str, str]:
    """Who asks, for Flower's node authentication: a signed time, good for some minutes."""
    timestamp = now.isoformat()
    signature = sign_message(key, timestamp.encode("ascii"))
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode("ascii"),
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
        TIMESTAMP_HEADER: timestamp,
    }


def stamp(reply: Message, asked: Message, now: datetime) -> None:
    """Date a reply by the coordinator's clock: by a device's own, Flower may find it expired or from the future."""
    created = now.timestamp()
    reply.metadata.__dict__["_created_at"] = created
    reply.metadata.__dict__["_ttl"] = asked.metadata.created_at + asked.metadata.ttl - created


class _Carrier:
    """Takes Flower's requests before its own HTTP client would."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> Response:
        asked = context.request
        body = self._post(asked.url.path, asked.content, {name: asked.headers[name] for name in _KINDS})
        return Response(200, content=body, request=asked)


def _understood(call: Callable[[], T]) -> T:
    try:
        return call()
    except ValueError as error:  # "Invalid protobuf response payload"
        raise LinkError("the answer is not in Flower's language") from error


def _inflated(claim: Claim, contents: dict[str, bytes], node_id: int) -> Message:
    try:
        kinds = {get_object_type_from_object_content(content) for content in contents.values()}
        message = inflate_object_from_contents(claim.message_id, contents) if kinds <= _READABLE else None
    except Exception as error:
        raise RefusedError("message", f"a message that cannot be read: {type(error).__name__}") from error
    if not isinstance(message, Message) or not message.has_content() or message.metadata.dst_node_id != node_id:
        raise RefusedError("message", "a message that is not for this node, or not of records alone")
    number(message, claim.message_id)
    return message


def _together(call: Callable[[A], T], arguments: Sequence[A]) -> list[T]:
    """All calls, some at a time: a link's round trips cost more than its bytes."""
    if len(arguments) < 2:
        return [call(argument) for argument in arguments]
    with ThreadPoolExecutor(min(PARALLEL, len(arguments))) as threads:
        return list(threads.map(call, arguments))
