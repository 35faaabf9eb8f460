"""Contracts with what is not public in Flower: each name is there and does what we rely on."""

import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.serverapp import ServerApp
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from httpx import Response

from fleet import flwr_compat
from fleet.errors import MissingExtraError

ROOT = Path(__file__).parent.parent.parent
IDENTITY = ("_run_id", "_node_id", "_task_id")


@pytest.fixture(autouse=True)
def nobody() -> Iterator[None]:
    """A process that plays no run yet; afterwards it is who it was."""
    before = {name: getattr(TaskIdentity, name) for name in IDENTITY}
    for name in IDENTITY:
        setattr(TaskIdentity, name, None)
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


def question() -> Message:
    return Message(RecordDict({"instruction": ConfigRecord({"body": b"body"})}), 1007, "train.update")


def test_without_an_identity_flower_makes_no_message() -> None:
    """If this fails, ``identify`` is not needed any more."""
    with pytest.raises(RuntimeError, match="not set"):
        question()


def test_an_identified_process_asks_as_the_coordinator_and_for_its_run() -> None:
    flwr_compat.identify(42)
    metadata = question().metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (42, flwr_compat.COORDINATOR_ID, 1007)
    assert metadata.message_type == "train.update"


def test_a_process_can_be_identified_again() -> None:
    flwr_compat.identify(1)
    flwr_compat.identify(2)
    assert question().metadata.run_id == 2


def test_a_numbered_message_keeps_its_number_and_a_reply_names_it() -> None:
    flwr_compat.identify(1)
    message = question()
    assert message.metadata.message_id == ""
    flwr_compat.number(message, "message-7")
    assert message.metadata.message_id == "message-7"
    for reply in (Message(RecordDict(), reply_to=message), Message(Error(2, "crashed"), reply_to=message)):
        assert reply.metadata.reply_to_message_id == "message-7"
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (1007, flwr_compat.COORDINATOR_ID)


def test_a_message_can_be_given_another_sender() -> None:
    flwr_compat.identify(1)
    message = question()
    flwr_compat.ascribe(message, 1007)
    assert message.metadata.src_node_id == 1007


def test_flowers_client_hands_each_request_to_its_interceptors() -> None:
    seen: list[tuple[ProtobufRequestContext, str, bytes]] = []

    class Keeper:
        def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> Response:
            seen.append((context, context.request.url.path, context.request.content))
            return Response(200, content=ActivateNodeResponse(node_id=7).SerializeToString(), request=context.request)

    client = FleetHttpClient("http://coordinator", interceptors=[Keeper()], verify=False)
    request = ActivateNodeRequest(public_key=b"pem")
    assert client.ActivateNode(request).node_id == 7
    [(context, path, body)] = seen
    assert isinstance(context, ProtobufRequestContext)
    assert (path, body) == ("/v1/fleet/activate-node", request.SerializeToString())


def test_a_message_of_no_run_is_made_without_an_identity_and_keeps_its_content() -> None:
    content = RecordDict({"record": ConfigRecord({"body": b"body"})})
    message = flwr_compat.of_no_run(content, "train")
    assert message.content == content
    assert not message.has_error()
    assert message.metadata.message_type == "train"


def test_an_empty_run_has_its_number_and_no_code() -> None:
    run = flwr_compat.empty_run(42)
    assert isinstance(run, Run)
    assert (run.run_id, run.fab_id, run.fab_hash, run.override_config) == (42, "", "", {})


def test_a_context_knows_its_run_and_node_and_starts_empty() -> None:
    context = flwr_compat.context(42, 1007)
    assert isinstance(context, Context)
    assert (context.run_id, context.node_id) == (42, 1007)
    assert (dict(context.state), dict(context.node_config), dict(context.run_config)) == ({}, {}, {})


def test_two_contexts_share_no_state() -> None:
    one, other = flwr_compat.context(1, 1000), flwr_compat.context(1, 1001)
    one.state["seen"] = ConfigRecord({"times": 1})
    assert "seen" not in other.state


def test_flower_logs_through_the_logger_that_is_quietened(caplog: pytest.LogCaptureFixture) -> None:
    from flwr.supercore import log

    logger = logging.getLogger("flwr")
    before = (list(logger.handlers), logger.level, logging.getLogger().level)
    try:
        logging.getLogger().setLevel(logging.WARNING)
        flwr_compat.quieten()
        assert logger.handlers == []
        log(logging.INFO, "a round began")
        log(logging.WARNING, "a round failed")
    finally:
        logger.handlers[:] = before[0]
        logger.setLevel(before[1])
        logging.getLogger().setLevel(before[2])
    assert [record.message for record in caplog.records if record.name == "flwr"] == ["a round failed"]


def test_without_ray_flowers_simulation_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgefleet\[ray\]"):
        flwr_compat.simulate(ServerApp(), ClientApp(), nodes=2)


def test_flowers_simulation_takes_two_apps_and_how_many_nodes() -> None:
    """``run_simulation`` is deprecated: this fails when it goes."""
    from flwr.simulation import run_simulation

    inspect.signature(run_simulation).bind(ServerApp(), ClientApp(), num_supernodes=2, backend_config={})


SIMULATION = """
import sys
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from fleet import flwr_compat

server, client = ServerApp(), ClientApp()

@client.query("place")
def place(message, context):
    return Message(RecordDict({"is": ConfigRecord({"place": context.node_config["partition-id"]})}), reply_to=message)

@server.main()
def main(grid, context):
    while len(ids := list(grid.get_node_ids())) < 3:
        pass
    replies = grid.send_and_receive([Message(RecordDict(), id_, "query.place") for id_ in ids], timeout=60)
    print(sorted(reply.content.config_records["is"]["place"] for reply in replies))

flwr_compat.simulate(server, client, nodes=3)
"""


@pytest.mark.slow
def test_flowers_simulation_numbers_its_nodes_from_zero() -> None:
    shown = subprocess.run([sys.executable, "-c", SIMULATION], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "[0, 1, 2]"


ALONE = """
from node.no_grpc import leave_grpc_out
leave_grpc_out()
import sys
from fleet.flwr_compat import FleetApi, quieten
import node.client_app, node.link
from flwr.app import ConfigRecord, Message, RecordDict
quieten()
print(*(name for name in sys.modules if name.split(".")[0] == "grpc"))
print(len(RecordDict({"a": ConfigRecord({"b": 1})})))
"""


def test_what_a_node_uses_of_flower_can_be_imported_without_grpc() -> None:
    run = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.splitlines() == ["grpc grpc._utilities", "1"]
