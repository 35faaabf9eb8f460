"""A served coordinator: its doors, its rounds over the network, and what a kill leaves."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.routing import iter_route_contexts

from coordinator.admin_client import AdminClient
from coordinator.serve import Plan, Running, serving
from coordinator.superlink import SuperLink
from fleet.enrolment import Invitation, encoded
from fleet.errors import RefusedError, UsageError
from fleet.events import read_events
from fleet.quantization import Template
from fleet.signing import sha256
from node.coordinator_client import CoordinatorClient
from tests.coordinator.conftest import Fleet
from tests.coordinator.served import SETTINGS, TASK, ask, prepare, served
from tests.coordinator.wearer import Wearer
from tests.waiting import until

PROTOBUF = "application/protobuf"
QUICK = SETTINGS.replace('every = "1h"', 'every = "1s"').replace('deadline = "1m"', 'deadline = "10m"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "coordinator"


@pytest.fixture(scope="module")
def running(folder: Path, template: Template) -> Iterator[Running]:
    with served(folder, template, SETTINGS.replace("min_updates = 2", "min_updates = 9")) as running:
        yield running  # with a quorum that nobody reaches: no round begins by itself


def admin(folder: Path) -> AdminClient:
    return AdminClient(folder)


def invited(folder: Path, name: str) -> Invitation:
    return Invitation.parse(admin(folder).post("invitations", {"name": name})["invitation"])


def bearer(folder: Path) -> dict[str, str]:
    return {"authorization": f"Bearer {json.loads((folder / 'admin.json').read_text())['token']}"}


# the doors


def flower_routes(tmp_path: Path) -> list[tuple[str, str]]:
    """Method and path of every route of Flower's application, those that FastAPI adds too."""
    app = SuperLink(tmp_path / "superlink.db").app
    routes = [context.route for context in iter_route_contexts(app.routes)]
    found = [(method, route.path) for route in routes if hasattr(route, "path") for method in route.methods or ()]
    assert len(found) > 50
    return found


def test_of_flowers_routes_the_public_listener_has_those_of_nodes_and_no_others(
    running: Running, tmp_path: Path
) -> None:
    open_: set[str] = set()
    closed: set[str] = set()
    for method, path in flower_routes(tmp_path):
        concrete = re.sub(r"{[^}]*}", "1", path)
        data = b"" if method == "POST" else None
        reply = ask(running.url + concrete, method=method, data=data, headers={"content-type": PROTOBUF})
        if path.startswith("/v1/fleet/"):
            open_.add(path)
            refusal = 403 if path.endswith("/push-messages") else 401  # which is to be of replies, whoever sends it
            assert reply.status == refusal, (path, reply)  # there, and not for strangers
        else:
            closed.add(path)
            assert reply.status == 404, (path, reply)
            assert method == "HEAD" or reply.code == "not-found"
    assert len(open_) == 12
    assert {"/docs", "/openapi.json", "/health", "/v1/control/start-run", "/v1/runtime/acquire-task"} <= closed


def test_of_our_routes_each_listener_has_its_own(running: Running, folder: Path) -> None:
    public = ("/api/v1/time", "/api/v1/status", "/api/v1/repository/metadata/1.root.json")
    private = ("status", "nodes", "rounds", "releases", "releases/0", "rollout")
    for path in public:
        assert ask(running.url + path).status in (200, 401)
        assert ask(running.admin_url + path).code == "credentials"
        assert ask(running.admin_url + path, headers=bearer(folder)).code == "not-found"
    for name in private:
        assert ask(f"{running.url}/admin/v1/{name}", headers=bearer(folder)).code == "not-found"
        assert ask(f"{running.admin_url}/admin/v1/{name}").code == "credentials"
        assert ask(f"{running.admin_url}/admin/v1/{name}", headers=bearer(folder)).status == 200


def test_strangers_push_nothing_out_of_the_log(tmp_path: Path, template: Template) -> None:
    folder = tmp_path / "coordinator"
    with served(folder, template) as running:
        for number in range(150):
            assert ask(f"{running.url}/api/v1/token", method="POST", data={f"no such field {number}": 1}).status == 400
            assert ask(f"{running.url}/wp-admin/{number}").status == 404
    said = (folder / "events.jsonl").read_text()
    assert 0 < said.count("/api/v1/token") < 130
    assert 0 < said.count("/wp-admin/") < 130


def test_nothing_of_the_admin_listener_answers_without_its_token(running: Running, folder: Path) -> None:
    for header in ("", "Bearer", "Bearer wrong", "Basic eDp5", bearer(folder)["authorization"] + "x"):
        for path in ("/", "/admin/v1/status", "/docs", "/v1/control/list-runs"):
            assert ask(running.admin_url + path, headers={"authorization": header}).code == "credentials"
    for path in ("/", "/docs", "/openapi.json", "/v1/control/list-runs"):
        assert ask(running.admin_url + path, headers=bearer(folder)).code == "not-found"


def test_the_admin_files_are_for_their_owner_only(running: Running, folder: Path) -> None:
    for name in ("admin.json", "admin.token", "keys/token.key", "keys/instruction.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("path", "data"),
    [
        pytest.param("enrol", b"", id="nothing"),
        pytest.param("enrol", b"{", id="no JSON"),
        pytest.param("enrol", b"[]", id="no object"),
        pytest.param("enrol", b"[" * 50_000, id="deep"),
        pytest.param("enrol", {"body": "aGk="}, id="a field is missing"),
        pytest.param("token", {"body": "aGk=", "signature": "aGk=", "more": 1}, id="a field too many"),
        pytest.param("token", {"body": 7, "signature": "aGk="}, id="a number for a text"),
        pytest.param("token", {"body": "é", "signature": "aGk="}, id="no base64"),
        pytest.param("token", b'{"body": NaN, "signature": ""}', id="NaN"),
    ],
)
def test_a_malformed_request_is_refused_by_name_and_recorded_once(
    running: Running, folder: Path, path: str, data: Any
) -> None:
    before = (folder / "events.jsonl").read_text().count('"malformed"')
    reply = ask(f"{running.url}/api/v1/{path}", method="POST", data=data)
    assert (reply.status, reply.code) == (400, "malformed")
    assert (folder / "events.jsonl").read_text().count('"malformed"') == before + 1


def test_a_fault_of_ours_is_one_line_in_the_log_and_a_500(
    running: Running, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coordinator.roster.Roster.member", lambda roster, name: 1 / 0)
    sealed = {"body": encoded(b'{"node": "watch"}'), "signature": ""}
    assert ask(f"{running.url}/api/v1/token", method="POST", data=sealed).code == "internal"
    (told,) = [e for e in read_events(folder / "events.jsonl") if e.get("code") == "internal"]
    assert (told["path"], told["reason"]) == ("/api/v1/token", "a fault of ours: ZeroDivisionError")
    assert told["where"].startswith("test_serve.py:")
    assert [record.name for record in caplog.records if record.exc_info] == []


def test_no_refusal_tells_of_our_insides(running: Running) -> None:
    shown = [ask(running.url + path).body for path in ("/api/v1/status", "/docs", "/api/v1/repository/x", "/")]
    assert not any(word in body for body in shown for word in (b"Traceback", b".py", b"/tmp", b"sqlite"))


def test_a_second_process_cannot_serve_the_folder(running: Running, folder: Path) -> None:
    with pytest.raises(UsageError, match="being served"), serving(Plan(folder, task=TASK, port=0)):
        pass


# a node over the network


@pytest.fixture(scope="module")
def wearer(running: Running, folder: Path) -> Wearer:
    return Wearer(invited(folder, "watch-1"))


def get(wearer: Wearer, path: str, **headers: str) -> Any:
    return ask(f"{wearer.url}/api/v1/{path}", headers=wearer.client.bearer() | headers)


def test_a_node_enrols_over_the_network_and_is_known_to_all(running: Running, folder: Path, wearer: Wearer) -> None:
    [listed] = [node for node in admin(folder).get("nodes") if node["name"] == "watch-1"]
    assert listed["flower_id"] == wearer.welcome.flower_id
    assert listed["state"] == "offline"
    assert wearer.welcome.settings.round.min_updates == 9
    with pytest.raises(RefusedError) as caught:
        Wearer(replace(invited(folder, "watch-2"), name="watch-1"))
    assert caught.value.code == "invitation"


def test_a_node_with_a_token_sees_how_things_stand(wearer: Wearer) -> None:
    standing = wearer.client.standing()
    assert (standing.round, standing.poll_s) == (None, 15)
    assert standing.shelf >= 2


def test_the_repository_is_served_whole_in_parts_and_not_at_all(wearer: Wearer, folder: Path) -> None:
    root = (folder / "repository" / "metadata" / "1.root.json").read_bytes()
    whole = get(wearer, "repository/metadata/1.root.json")
    assert whole.body == root
    assert sha256(whole.body) == sha256(wearer.welcome.root)
    part = get(wearer, "repository/metadata/1.root.json", range="bytes=10-19")
    assert (part.status, part.body) == (206, root[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(root)}"
    assert get(wearer, "repository/metadata/1.root.json", range="bytes=-5").body == root[-5:]
    assert get(wearer, "repository/metadata/1.root.json", range="bytes=10-").body == root[10:]
    assert get(wearer, "repository/metadata/1.root.json", range="bytes=1-2,4-5").body == root
    assert get(wearer, "repository/metadata/1.root.json", range=f"bytes={len(root)}-").code == "range"
    assert get(wearer, "repository/metadata/1.root.json", **{"if-none-match": whole.headers["etag"]}).status == 304
    [target] = (folder / "repository" / "targets" / "bases" / "00000000").glob("*.weights.bin")
    assert get(wearer, f"repository/targets/bases/00000000/{target.name}").body == target.read_bytes()


def test_asking_for_a_newer_root_as_tuf_does_each_time_is_no_refusal(wearer: Wearer, folder: Path) -> None:
    before = (folder / "events.jsonl").read_text()
    assert get(wearer, "repository/metadata/2.root.json").code == "not-found"
    assert (folder / "events.jsonl").read_text() == before


@pytest.mark.parametrize(
    "path",
    [
        "repository/metadata/9.root.json",
        pytest.param(f"repository/metadata/{'9' * 260}.root.json", id="longer than a file's name may be"),
        "repository/metadata/",
        "repository/metadata",
        "repository/keys/root.pem",
        "repository/../keys/root.pem",
        "repository/metadata/../../keys/root.pem",
        "repository/metadata/%2e%2e/%2e%2e/keys/root.pem",
        "repository/metadata/..%2f..%2fkeys/root.pem",
        "repository/metadata//1.root.json",
        "repository//etc/passwd",
        "repository/metadata/.1.root.json.part",
        "repository/metadata/link.json",
        "repository/metadata/1.root.json%00",
        "repository/metadata\\1.root.json",
    ],
)
def test_no_path_leads_out_of_the_repository(wearer: Wearer, folder: Path, path: str) -> None:
    link = folder / "repository" / "metadata" / "link.json"
    if not link.exists():
        link.symlink_to(folder / "keys" / "root.pem")
        (link.parent / ".1.root.json.part").write_bytes(b"half of a write")
    assert get(wearer, path).code == "not-found"


def test_asking_for_a_newer_root_is_no_news(wearer: Wearer, folder: Path) -> None:
    """Every look at the shelf ends with it."""

    def other_is_told() -> bool:
        for name in ("9.root.json", "9.other.json"):
            assert get(wearer, f"repository/metadata/{name}").code == "not-found"
        return "/9.other.json" in (folder / "events.jsonl").read_text()

    until(other_is_told)  # one line a second, where strangers were many
    assert "/9.root.json" not in (folder / "events.jsonl").read_text()


def test_a_revoked_node_is_out_within_a_second(running: Running, folder: Path) -> None:
    wearer = Wearer(invited(folder, "watch-3")).start()
    until(lambda: any(n["name"] == "watch-3" and n["state"] == "online" for n in admin(folder).get("nodes")))
    token = wearer.client.bearer()
    assert ask(f"{running.url}/api/v1/status", headers=token).status == 200
    admin(folder).post("revocations", {"name": "watch-3"})
    refused = ask(f"{running.url}/api/v1/status", headers=token)
    assert (refused.status, refused.code) == (403, "revoked")
    fresh = CoordinatorClient(wearer.transport, wearer.clock, node="watch-3", key=wearer.key)
    with pytest.raises(RefusedError) as caught:
        fresh.standing()
    assert caught.value.code == "revoked"
    until(lambda: any(event == "link-lost" for event, _ in wearer.events), seconds=20)  # Flower hears it no more
    wearer.stop()
    assert [n["state"] for n in admin(folder).get("nodes") if n["name"] == "watch-3"] == ["revoked"]


def test_the_operators_questions_are_answered_and_impossible_wishes_refused(running: Running, folder: Path) -> None:
    assert admin(folder).get("status")["rounds"]["planned"] == 5
    assert admin(folder).get("releases/0")["phase"] == "done"
    assert admin(folder).get("rollout")["number"] == 0
    for path, code in (
        ("rounds", "too-few"),
        ("rollout/pause", "no-rollout"),
        ("rollout/resume", "no-rollout"),
        ("rollout/withdraw", "nothing-before"),
    ):
        with pytest.raises(RefusedError) as caught:
            admin(folder).post(path)
        assert caught.value.code == code
    for path, data, code in (
        ("revocations", {"name": "nobody"}, "unknown-node"),
        ("invitations", {"name": "watch-1"}, "name-taken"),
        ("invitations", {"name": "../x"}, "malformed"),
        ("invitations", {"name": 7}, "malformed"),
    ):
        with pytest.raises(RefusedError) as caught:
            admin(folder).post(path, data)
        assert caught.value.code == code
    with pytest.raises(RefusedError, match="no release 9"):
        admin(folder).get("releases/9")


# rounds


def test_a_round_over_the_network_ends_in_the_mean_of_all_and_a_node_that_learns_is_asked_again(
    tmp_path: Path, template: Template
) -> None:
    with served(tmp_path / "coordinator", template):
        door = tmp_path / "coordinator"
        wearers = [Wearer(invited(door, f"node-{number}")) for number in range(3)]
        wearers[1].not_yet = 2
        for wearer in wearers:
            wearer.start()
        until(lambda: admin(door).get("status")["rounds"]["done"] == 1)
        for wearer in wearers:
            wearer.stop()
        [round_] = admin(door).get("rounds")
    assert (round_["updates"], round_["refused"], round_["made"]) == (3, 0, 1)
    assert wearers[1].asked == [1, 1, 1]
    assert wearers[0].asked == wearers[2].asked == [1]
    assert master(door) == expected(tmp_path, template, rounds=1, nodes=3)


def master(folder: Path) -> list[str]:
    """Digests of the masters of all bases: the whole outcome of training."""
    from coordinator.registry import Registry

    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    digests = [base.master for base in registry.rounds.bases()]
    registry.close()
    return digests


def expected(tmp_path: Path, template: Template, *, rounds: int, nodes: int) -> list[str]:
    """What the same updates come to without a network."""
    from fleet.settings import Settings

    settings = Settings().changed(
        privacy={"epsilon": float("inf"), "planned_releases": 50},
        round={"rounds": 5, "min_updates": 2},
        release={"every_rounds": 100},
    )
    fleet = Fleet(tmp_path / "alone", template, settings, nodes=nodes)
    for _ in range(rounds):
        fleet.play_round()
    digests = [base.master for base in fleet.bases]
    fleet.close()
    return digests


def serve_process(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from coordinator.serve import Plan, serving\n"
        f"with serving(Plan(Path({str(folder)!r}), task={TASK!r}, port=0)) as running: running.run()"
    )
    (folder / "admin.json").unlink(missing_ok=True)
    with open(log, "ab") as output:
        return subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=output, cwd=Path.cwd())


def ready(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """The public address, once it answers."""
    until(lambda: process.poll() is not None or (folder / "admin.json").exists())
    assert process.poll() is None
    return str(json.loads((folder / "admin.json").read_text())["public"])


@pytest.mark.slow
def test_I1_I2_killed_again_and_again_it_ends_as_if_nothing_had_happened(tmp_path: Path, template: Template) -> None:
    door, log = tmp_path / "coordinator", tmp_path / "serve.log"
    prepare(door, template, QUICK.replace("every_rounds = 1", "every_rounds = 100"))
    process = serve_process(door, log)
    url = ready(door, process)
    wearers = [Wearer(invited(door, f"node-{number}")).start() for number in range(3)]
    rng, done = np.random.default_rng(7), [0]
    try:
        for _ in range(5):
            with suppress(subprocess.TimeoutExpired):
                process.wait(float(rng.uniform(0.2, 2.5)))
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, log.read_text()[-2000:]
            for wearer in wearers:
                wearer.stop()
            process = serve_process(door, log)
            url = ready(door, process)
            for wearer in wearers:
                wearer.start(url)
            done.append(admin(door).get("status")["rounds"]["done"])
        until(lambda: admin(door).get("status")["rounds"]["done"] == 5, seconds=120)
    finally:
        process.kill()
        process.wait()
        for wearer in wearers:
            wearer.stop()
    assert done == sorted(done)
    assert master(door) == expected(tmp_path, template, rounds=5, nodes=3)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_lost_or_damaged_database_of_flower_costs_nothing(tmp_path: Path, template: Template, damaged: bool) -> None:
    door = tmp_path / "coordinator"
    with served(door, template):
        wearers = [Wearer(invited(door, f"node-{number}")) for number in range(2)]
    for path in door.glob("superlink.db*"):
        path.unlink()
    if damaged:
        (door / "superlink.db").write_bytes(b"no database at all" * 1000)
    with served(door, template) as running:
        for wearer in wearers:
            wearer.start(running.url)
        until(lambda: admin(door).get("status")["rounds"]["done"] == 1)
        for wearer in wearers:
            wearer.stop()
