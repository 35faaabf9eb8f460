"""The local API as programs see it: over TCP and a Unix socket, by the stock client, by ours, and by hand."""

import http.client
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.errors import InputError, LinkError
from fleet.privacy.gaussian import Budget
from node.address import parse
from node.client import Client
from node.desk import Desk
from node.floors import CLOCK, SERVING, SqliteFloors
from node.gauges import NodeGauges
from node.http_message import Request
from node.http_server import HttpServer
from node.local_api import LocalApi
from node.predictor import Predictor
from node.promotion import Stage, StageLog
from node.store import open_store

ROOT = Path(__file__).parent.parent.parent
BASE = "/v2/models/toy"


class Models:
    """What the node's loop exchanges."""

    active: Predictor | None = None
    rival: Predictor | None = None


class Served:
    """A node's desk behind its API, at a real address."""

    def __init__(self, folder: Path, toy: Any, where: str) -> None:
        self.toy, self.folder, self.where = toy, folder, where
        self.models = Models()
        self.models.active = self.predictor(3)
        self.events: list[str] = []
        self.open()

    def open(self) -> None:
        self.desk = Desk(self.folder / "node.db", self.toy.signature, self.models, partition_size=100)
        gauges = NodeGauges(self.folder, Budget(8.0, 1e-5), lambda: datetime.now(UTC))
        self.api = LocalApi(
            self.desk,
            "toy",
            version="1.2.3",
            gauges=gauges.read,
            record=lambda event, **fields: self.events.append(event),
        )
        self.server = HttpServer(self.where, self.api)
        self.server.start()
        self.where = self.server.address

    def close(self) -> None:
        self.server.close()
        self.desk.close()

    def predictor(self, number: int) -> Predictor:
        return Predictor(number, self.toy.made(number)[1], self.toy.signature)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """A request on a connection of its own; the status, and the JSON or the text that came back."""
        place = parse(self.where)
        connection = http.client.HTTPConnection("localhost", getattr(place, "number", 80), timeout=10)
        if isinstance(place, Path):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(place))
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status < 400 or (response.headers["Content-Type"] == "application/json")
            return response.status, json.loads(text) if path != "/metrics" else text
        finally:
            connection.close()

    def examples(self) -> int:
        store = sqlite3.connect(self.folder / "node.db")
        (count,) = store.execute("select count(*) from example").fetchone()
        store.close()
        return int(count)


@pytest.fixture(params=["tcp", "unix"])
def served(request: pytest.FixtureRequest, tmp_path: Path, toy: Any) -> Iterator[Served]:
    where = "http://127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path / 'api.sock'}"
    served = Served(tmp_path, toy, where)
    yield served
    served.close()


@pytest.fixture
def tcp(tmp_path: Path, toy: Any) -> Iterator[Served]:
    served = Served(tmp_path, toy, "http://127.0.0.1:0")
    yield served
    served.close()


def question(*readings: list[float], **more: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(readings), 2], "data": list(readings)}
    return {"inputs": [tensor], **more}


STOCK = """
import json, sys
import numpy as np
from tritonclient.http import InferenceServerClient, InferenceServerException, InferInput, InferRequestedOutput

client = InferenceServerClient(sys.argv[1], concurrency=4)
x = np.array([[0.5, 0.1], [-0.5, 0.1], [0.25, 0.0]], np.float32)
said = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model": [client.is_model_ready("toy"), client.is_model_ready("toy", "3"), client.is_model_ready("other")],
    "server": client.get_server_metadata(),
    "metadata": client.get_model_metadata("toy"),
}
for binary in (True, False):
    tensor = InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in ("label", "logits", "class")]
    for outputs in (wanted, None):
        result = client.infer("toy", [tensor], request_id=f"a-{binary}", outputs=outputs)
        response = result.get_response()
        said[f"{binary} {outputs is None}"] = {
            "label": [name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("label")],
            "logits": result.as_numpy("logits").tolist(),
            "class": result.as_numpy("class").tolist(),
            "dtypes": [str(result.as_numpy(name).dtype) for name in ("logits", "class")],
            "id": response["id"], "version": response["model_version"], "release": response["parameters"]["release"],
        }
running = [client.async_infer("toy", [tensor]) for _ in range(20)]
said["async"] = [one.get_result().as_numpy("class").tolist() for one in running]
tensor = InferInput("y", list(x.shape), "FP32")
tensor.set_data_from_numpy(x)
try:
    client.infer("toy", [tensor])
except InferenceServerException as error:
    said["error"] = [error.status(), error.message()]
client.close()
print(json.dumps(said))
"""


def test_the_stock_client_works_unchanged(tcp: Served) -> None:
    """In a process of its own, because its event library patches what others use."""
    code = [sys.executable, "-W", "ignore", "-c", STOCK, tcp.where.removeprefix("http://")]
    done = subprocess.run(code, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["live"], said["ready"], said["model"]) == (True, True, [True, True, False])
    assert said["server"]["name"] == "edgefleet"
    assert "binary_tensor_data" in said["server"]["extensions"]
    assert said["metadata"]["versions"] == ["3"]
    assert said["metadata"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    x = np.array([[0.5, 0.1], [-0.5, 0.1], [0.25, 0.0]], np.float32)
    truth = [tcp.predictor(3).answer(one) for one in x]
    for how in ("True True", "True False", "False True", "False False"):
        assert said[how] == {
            "label": ["right", "left", "right"],
            "logits": [one.logits.tolist() for one in truth],
            "class": [1, 0, 1],
            "dtypes": ["float32", "int64"],
            "id": f"a-{how.split()[0]}",
            "version": "3",
            "release": 3,
        }
    assert said["async"] == [[1, 0, 1]] * 20
    assert said["error"] == ["400", "inputs[0].name: 'y', the task takes 'x'"]


def test_our_client_asks_and_labels(served: Served) -> None:
    client = Client(served.where)
    x = np.array([0.5, 0.1], np.float32)
    answer = client.infer(x, id="mine")
    assert (answer.id, answer.label, answer.index, answer.release) == ("mine", "right", 1, 3)
    np.testing.assert_array_equal(answer.logits, served.predictor(3).answer(x).logits)
    client.label(answer.id, "left")
    client.label(client.infer(x).id, 1)
    assert served.examples() == 2
    with pytest.raises(InputError, match="shape"):
        client.infer(np.zeros(3, np.float32))
    with pytest.raises(InputError, match="no answer 'never'"):
        client.label("never", 0)
    served.models.active = None
    with pytest.raises(LinkError, match="no release"):
        client.infer(x)
    client.close()


def test_our_client_finds_a_node_that_was_started_again(served: Served) -> None:
    client = Client(served.where)
    answer = client.infer(np.array([0.5, 0.1], np.float32))
    served.close()
    served.open()
    client.label(answer.id, "right")
    served.close()
    with pytest.raises(LinkError):
        client.infer(np.array([0.5, 0.1], np.float32))
    served.open()
    assert client.infer(np.array([0.5, 0.1], np.float32)).index == 1
    client.close()


def test_answers_carry_the_release_that_gave_them(served: Served) -> None:
    for release in (3, 4):
        served.models.active = served.predictor(release)
        status, said = served.ask("POST", f"{BASE}/infer", question([0.5, 0], [-0.5, 0]))
        assert (status, said["model_version"], said["parameters"]["release"]) == (200, str(release), release)
        assert [output["data"] for output in said["outputs"][1:]] == [["right", "left"], [1, 0]]
    assert served.ask("GET", BASE)[1]["versions"] == ["4"]
    assert served.ask("POST", f"{BASE}/versions/4/infer", question([0.5, 0]))[0] == 200
    assert served.ask("POST", f"{BASE}/versions/3/infer", question([0.5, 0]))[0] == 404


def test_a_batch_takes_a_label_for_each_reading(served: Served) -> None:
    served.ask("POST", f"{BASE}/infer", question([0.5, 0], [-0.5, 0], id="a"))
    assert served.ask("POST", f"{BASE}/labels", {"id": "a", "label": "left"})[0] == 400
    assert served.ask("POST", f"{BASE}/labels", {"id": "a", "labels": ["left", 1]}) == (200, {"id": "a", "labelled": 2})
    assert served.ask("POST", f"{BASE}/labels", {"id": "a", "labels": [0, 0]}) == (200, {"id": "a", "labelled": 0})
    assert served.examples() == 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        ({"label": 0}, "id: missing"),
        ({"id": 3, "label": 0}, "id: must be"),
        ({"id": "a"}, "label: give one"),
        ({"id": "a", "label": 0, "labels": [0]}, "label: give one"),
        ({"id": "a", "labels": 0}, "labels: must be a list"),
        ({"id": "a", "labels": []}, "labels: must be a list"),
        ({"id": "a", "label": "up"}, "label: 'up' is no class: left, right, or 0 to 1"),
        ({"id": "a", "label": 2}, "label: '2' is no class"),
        ({"id": "a", "label": True}, "label: 'True' is no class"),
        ({"id": "a", "label": None}, "label: 'None' is no class"),
        ({"id": "other", "label": 0}, "id: no answer 'other' is on record"),
    ],
)
def test_a_bad_label_names_the_field_and_changes_nothing(tcp: Served, body: Any, says: str) -> None:
    tcp.ask("POST", f"{BASE}/infer", question([0.5, 0], id="a"))
    status, said = tcp.ask("POST", f"{BASE}/labels", body)
    assert status == 400
    assert says in said["error"]
    assert tcp.examples() == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", f"{BASE}/else", 404),
        ("GET", f"{BASE}/versions", 404),
        ("GET", f"{BASE}/versions/9", 404),
        ("GET", f"{BASE}/versions/9/ready", 404),
        ("GET", f"{BASE}/../toy", 404),
        ("GET", f"{BASE}/infer", 405),
        ("GET", f"{BASE}/labels", 405),
        ("PUT", f"{BASE}/infer", 405),
        ("POST", "/v2", 405),
        ("DELETE", BASE, 405),
        ("GET", "/v2", 200),
        ("GET", "/v2/", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", f"{BASE}/ready", 200),
        ("GET", f"{BASE}/versions/3/ready", 200),
        ("GET", f"{BASE}/versions/3", 200),
    ],
)
def test_paths_and_methods(tcp: Served, method: str, path: str, status: int) -> None:
    got, said = tcp.ask(method, path)
    assert got == status
    assert (status == 200) or said["error"]


def test_a_node_without_a_release_is_live_and_not_ready(served: Served) -> None:
    served.models.active = None
    statuses = {
        path: served.ask("GET", path)[0] for path in ("/v2/health/live", "/v2/health/ready", f"{BASE}/ready", BASE)
    }
    assert list(statuses.values()) == [200, 503, 503, 200]
    assert served.ask("POST", f"{BASE}/infer", question([0.5, 0]))[0] == 503


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "[::2]:80"}, 403),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Inference-Header-Content-Length": "x"}, 400),
        ({"Inference-Header-Content-Length": "100000"}, 400),
    ],
)
def test_requests_of_web_pages_and_of_unknown_encodings_are_refused(
    tcp: Served, headers: dict[str, str], status: int
) -> None:
    assert tcp.ask("POST", f"{BASE}/infer", question([0.5, 0]), **headers)[0] == status


def test_a_fault_of_ours_is_recorded_and_ends_nothing(tcp: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Desk, "answer", lambda *_: 1 // 0)
        assert tcp.ask("POST", f"{BASE}/infer", question([0.5, 0]))[0] == 500
    assert tcp.events == ["failed"]
    assert tcp.ask("POST", f"{BASE}/infer", question([0.5, 0]))[0] == 200


def test_many_clients_are_answered_each_with_its_own_answer(served: Served) -> None:
    wrong: list[Any] = []

    def ask(sign: float) -> None:
        client = Client(served.where)
        for i in range(50):
            x = np.array([sign * (i + 1) / 100, 0], np.float32)
            answer = client.infer(x, id=f"{sign} {i}")
            if answer.index != (sign > 0) or answer.id != f"{sign} {i}":
                wrong.append(answer)
        client.close()

    threads = [threading.Thread(target=ask, args=(sign,)) for sign in (1.0, -1.0) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert served.desk.metrics.answers == 400


COMMITTED = (Stage.STAGED, Stage.ADMITTED, Stage.SHADOW, Stage.PROBATION, Stage.COMMITTED)
LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]+"\})? (NaN|[+-]Inf|-?[0-9.e+-]+)')


def samples(text: str) -> dict[str, float]:
    """Prometheus' text format, read strictly."""
    lines = text.splitlines()
    assert all(line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line) for line in lines)
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    assert len(dict(pairs)) == len(pairs)  # type: ignore[arg-type]
    return {name: float(value) for name, value in pairs}


def test_metrics_count_what_happened_and_say_where_the_node_stands(served: Served) -> None:
    store = open_store(served.folder / "node.db")
    log = StageLog(store)
    for release, stages in ((3, COMMITTED), (5, [Stage.STAGED])):
        for stage in stages:
            log.append(release, stage, "")
    SqliteFloors(store).raise_to({SERVING: 4, CLOCK: int(datetime.now(UTC).timestamp()) - 9000})
    store.execute("insert into session (base, base_digest, mu2, payload) values (1, '', 1, x'')")
    store.close()
    (served.folder / "slots").mkdir()
    (served.folder / "slots" / "active.json").touch()
    served.ask("POST", f"{BASE}/infer", question([0.5, 0], [-0.5, 0], id="a"))
    served.ask("POST", f"{BASE}/labels", {"id": "a", "labels": [0, 1]})
    served.ask("GET", "/nowhere")
    status, text = served.ask("GET", "/metrics")
    found = samples(text)
    assert status == 200
    assert {name: found[f"edgefleet_{name}"] for name in EXPECTED} == EXPECTED
    assert 0 <= found["edgefleet_active_release_age_seconds"] < 60
    assert 9000 <= found["edgefleet_last_pull_age_seconds"] < 9060
    assert 0 < found["edgefleet_answer_seconds_sum"] < 10
    assert found['edgefleet_answer_seconds_bucket{le="+Inf"}'] == 1
    assert found['edgefleet_confidence_bucket{le="1.0"}'] == 2
    assert found['edgefleet_confidence_bucket{le="0.4"}'] == 0


EXPECTED = {
    "answers_total": 2,
    "labels_total": 2,
    "unrecorded_total": 0,
    'refused_total{status="404"}': 1,
    "answer_seconds_count": 1,
    "confidence_count": 2,
    "active_release": 3,
    "releases_behind": 1,
    "epsilon_spent": 0,
    "epsilon_budget": 8,
    "buffer_examples": 2,
    "outbox_sessions": 1,
    "store_readable": 1,
}


def test_a_store_that_cannot_be_read_is_itself_a_figure(tmp_path: Path) -> None:
    (tmp_path / "node.db").write_bytes(b"no database" * 100)
    gauges = NodeGauges(tmp_path, Budget(8.0, 1e-5), lambda: datetime.now(UTC)).read()
    assert [(gauge.name, gauge.value) for gauge in gauges] == [("edgefleet_store_readable", 0)]


def test_the_api_imports_nothing_heavy() -> None:
    code = "import node.local_api, node.http_server, node.gauges, sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "flwr", "fastapi", "uvicorn", "asyncio", "sqlalchemy", "onnx", "tuf", "http.client", "rich"}
    assert not set(shown.stdout.split()) & heavy


def test_a_request_needs_no_socket_to_be_answered(tcp: Served) -> None:
    body = json.dumps(question([0.5, 0])).encode()
    assert tcp.api.answer(Request("POST", f"{BASE}/infer", {}, body)).status == 200
