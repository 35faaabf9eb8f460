"""Every private name of Flower that we use has a contract: a test that fails when the name no longer does its work.

``.ci/run`` runs ``CONTRACTS`` on every version of Flower that ``pyproject.toml`` admits.
"""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USERS = ("fleet/flwr_compat.py", "coordinator/superlink.py")
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
HELD = {"_state", "_client", "state", "object_store", "linkstate_factory"}  # what of Flower's our objects hold
COMPAT, API, LINK = (
    "tests/fleet/test_flwr_compat.py",
    "tests/fleet/test_fleet_api.py",
    "tests/coordinator/test_superlink.py",
)

CLAIMED = f"{API}::test_a_message_is_claimed_fetched_and_answered_in_flowers_language"
SIGNED = f"{API}::test_flower_takes_our_signature_of_the_coordinators_time"
KNOWN = f"{LINK}::test_a_node_is_known_by_what_it_signed_lately_and_nobody_else_is"
KEYED = f"{LINK}::test_a_key_has_one_id_for_ever_and_none_once_it_is_gone"
ANSWERED = f"{LINK}::test_a_question_is_answered_once_and_nothing_is_left_behind"
GIVEN_UP = f"{LINK}::test_a_run_that_flower_gave_up_is_followed_by_another"
DIED = f"{LINK}::test_a_run_of_a_process_that_died_is_ended_by_the_next"
UNFOLDED = f"{LINK}::test_a_reply_that_names_one_chunk_many_times_is_too_long_before_it_is_unfolded"
DROPPED = f"{LINK}::test_what_a_node_pushes_that_flower_drops_is_forgotten_and_an_upload_under_way_is_not"
CARRIED = f"{COMPAT}::test_flowers_client_hands_each_request_to_its_interceptors"
IDENTIFIED = f"{COMPAT}::test_an_identified_process_asks_as_the_coordinator_and_for_its_run"

CONTRACTS = {
    "flwr.app.message.make_message": f"{LINK}::test_an_error_of_a_node_comes_through",
    "flwr.app.message.remove_content_from_message": CLAIMED,
    "flwr.common.constant.ErrorCode": f"{LINK}::test_a_reply_that_is_too_long_is_an_error_and_not_in_memory",
    "flwr.common.constant.NOOP_ACCOUNT_NAME": KEYED,
    "flwr.common.constant.NOOP_FLWR_AID": KEYED,
    "flwr.common.constant.SYSTEM_TIME_TOLERANCE": KNOWN,
    "flwr.common.constant.SubStatus": f"{LINK}::test_a_run_that_ended_is_over_for_flower_too",
    "flwr.common.constant.TIMESTAMP_HEADER": SIGNED,
    "flwr.common.constant.TIMESTAMP_TOLERANCE": KNOWN,
    "flwr.common.serde.message_to_proto": CLAIMED,
    "flwr.proto.fleet_pb2.ActivateNodeRequest": CLAIMED,
    "flwr.proto.fleet_pb2.DeactivateNodeRequest": CLAIMED,
    "flwr.proto.fleet_pb2.PullMessagesRequest": CLAIMED,
    "flwr.proto.fleet_pb2.PushMessagesRequest": CLAIMED,
    "flwr.proto.heartbeat_pb2.SendNodeHeartbeatRequest": CLAIMED,
    "flwr.proto.message_pb2.ConfirmMessageReceivedRequest": CLAIMED,
    "flwr.proto.message_pb2.PullObjectRequest": CLAIMED,
    "flwr.proto.message_pb2.PushObjectRequest": CLAIMED,
    "flwr.proto.node_pb2.Node": CLAIMED,
    "flwr.simulation.run_simulation": f"{COMPAT}::test_flowers_simulation_takes_two_apps_and_how_many_nodes",
    "flwr.supercore.constant.FLEET_HTTP_PUBLIC_KEY_HEADER": SIGNED,
    "flwr.supercore.constant.FLEET_HTTP_SIGNATURE_HEADER": SIGNED,
    "flwr.supercore.constant.NOOP_FEDERATION_ID": ANSWERED,
    "flwr.supercore.constant.TaskType": ANSWERED,
    "flwr.supercore.date": KNOWN,
    "flwr.supercore.primitives.asymmetric.bytes_to_public_key": KNOWN,
    "flwr.supercore.primitives.asymmetric.verify_signature": KNOWN,
    "flwr.supercore.inflatable.inflatable_object.get_all_nested_objects": CLAIMED,
    "flwr.supercore.inflatable.inflatable_object.get_object_body": UNFOLDED,
    "flwr.supercore.inflatable.inflatable_object.get_object_head_values_from_object_content": UNFOLDED,
    "flwr.supercore.inflatable.inflatable_object.get_object_tree": CLAIMED,
    "flwr.supercore.inflatable.inflatable_object.get_object_type_from_object_content": CLAIMED,
    "flwr.supercore.inflatable.inflatable_object.iterate_object_tree": CLAIMED,
    "flwr.supercore.inflatable.inflatable_object.no_object_id_recompute": CLAIMED,
    "flwr.supercore.inflatable.inflatable_utils.inflate_object_from_contents": CLAIMED,
    "flwr.supercore.object_store.NoObjectInStoreError": f"{LINK}::test_a_reply_whose_parts_were_forgotten_is_an_error",
    "flwr.supercore.primitives.asymmetric.public_key_to_bytes": SIGNED,
    "flwr.supercore.primitives.asymmetric.sign_message": SIGNED,
    "flwr.supercore.protobuf.client.ProtobufCall": CARRIED,
    "flwr.supercore.protobuf.client.ProtobufRequestContext": CARRIED,
    "flwr.supercore.run.Run": f"{COMPAT}::test_an_empty_run_has_its_number_and_no_code",
    "flwr.supercore.task_identity.TaskIdentity": IDENTIFIED,
    "flwr.supercore.state.schema.corestate_models.ObjectPushSession": DROPPED,
    "flwr.superlink.auth_plugin.NoOpControlAuthnPlugin": KEYED,
    "flwr.superlink.cli.flower_superlink.SuperLinkLifespan": KEYED,
    "flwr.superlink.config_loader.SuperLinkLifespanConfig": KEYED,
    "flwr.superlink.main.create_app": KEYED,
    "flwr.supernode.fleet_http_client.FleetHttpClient": CLAIMED,
    "PushMessagesRequest.FromString": f"{LINK}::test_a_node_pushes_replies_in_its_own_name",
    "Run.create_empty": f"{COMPAT}::test_an_empty_run_has_its_number_and_no_code",
    "ObjectPushSession.expires_at": DROPPED,
    "ObjectPushSession.pending_count": DROPPED,
    "TaskIdentity.node_id": IDENTIFIED,
    "TaskIdentity.run_id": IDENTIFIED,
    "TaskIdentity.task_id": IDENTIFIED,
    "ErrorCode.MESSAGE_UNAVAILABLE": f"{LINK}::test_a_reply_that_is_too_long_is_an_error_and_not_in_memory",
    "SubStatus.COMPLETED": f"{LINK}::test_a_run_that_ended_is_over_for_flower_too",
    "TaskType.SERVER_APP": ANSWERED,
    "__dict__._created_at": f"{API}::test_a_stamped_reply_ends_when_its_ask_does",
    "__dict__._message_id": f"{COMPAT}::test_a_numbered_message_keeps_its_number_and_a_reply_names_it",
    "__dict__._src_node_id": f"{COMPAT}::test_a_message_can_be_given_another_sender",
    "__dict__._ttl": f"{API}::test_a_stamped_reply_ends_when_its_ask_does",
    "_client.ActivateNode": CLAIMED,
    "_client.ConfirmMessageReceived": CLAIMED,
    "_client.DeactivateNode": CLAIMED,
    "_client.PullMessages": CLAIMED,
    "_client.PullObject": CLAIMED,
    "_client.PushMessages": CLAIMED,
    "_client.PushObject": CLAIMED,
    "_client.SendNodeHeartbeat": CLAIMED,
    "_state.acknowledge_task_heartbeat": GIVEN_UP,
    "_state.cleanup_run": f"{LINK}::test_a_run_that_ended_is_over_for_flower_too",
    "_state.create_node": KEYED,
    "_state.delete_messages": ANSWERED,
    "_state.delete_node": KEYED,
    "_state.finish_task": f"{LINK}::test_a_run_that_ended_is_over_for_flower_too",
    "_state.get_message_res": ANSWERED,
    "_state.get_node_id_by_public_key": KEYED,
    "_state.get_node_info": f"{LINK}::test_a_node_is_online_while_its_heartbeat_is_fresh",
    "_state.get_nodes": f"{LINK}::test_a_node_is_online_while_its_heartbeat_is_fresh",
    "_state.get_object": ANSWERED,
    "_state.get_run_info": DIED,
    "_state.object_store": ANSWERED,
    "_state.session": DROPPED,
    "_state.start_session": ANSWERED,
    "_state.stop_run": DIED,
    "_state.store_message_and_object_tree": ANSWERED,
    "_state.store_object": ANSWERED,
    "linkstate_factory.state": KEYED,
    "object_store.delete": ANSWERED,
    "object_store.get_object_tree": ANSWERED,
    "state.activate_task": ANSWERED,
    "state.claim_task": ANSWERED,
    "state.create_run": ANSWERED,
    "state.get_run_info": ANSWERED,
    "state.linkstate_factory": KEYED,
}


def private_names(path: Path) -> set[str]:
    """Private names of Flower in a file: what it imports, and what it asks of imported and held objects."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "flwr" and node.module not in PUBLIC:
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set(imported.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if owner in HELD or (owner in imported and owner[0].isupper()):
                found.add(f"{owner}.{node.attr}")
        elif (
            isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__"
        ):
            found.add(f"__dict__.{ast.literal_eval(node.slice)}")
    return found


def test_every_private_name_of_flower_has_a_contract_and_every_contract_a_name() -> None:
    used = set().union(*(private_names(ROOT / path) for path in USERS))
    assert used == set(CONTRACTS)
    assert len(used) > 60


@pytest.mark.parametrize("test", sorted(set(CONTRACTS.values())))
def test_a_contract_is_a_test(test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_check_runs_the_contracts_on_every_version_that_the_pin_admits() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [pin] = [line for line in extras["train"] if line.startswith("flwr")]
    bounds = re.fullmatch(r"flwr>=1\.(\d+),<1\.(\d+)", pin)
    assert bounds
    admitted = [f"1.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))]
    check = (ROOT / ".ci" / "run").read_text()
    looped = re.search(r"^for flower in ([\d. ]+); do$", check, re.MULTILINE)
    assert looped
    assert looped[1].split() == admitted
    for path in {test.partition("::")[0] for test in CONTRACTS.values()}:
        assert path in check
