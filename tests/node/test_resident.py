"""The resident process of a node that has no coordinator: over a disk that fills, and over a store that is damaged."""

import json
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.errors import LinkError
from fleet.events import ignore
from fleet.release import Rollout
from fleet.settings import Settings
from node import http_connection, recorder, resident
from node.admission import admit
from node.agent import Agent
from node.client import Client
from node.identity import Identity
from node.promotion import StageLog
from node.resident import Resident
from node.serving import Serving
from node.shadow import Shadow
from node.slots import Slots
from node.store import open_store
from tests.conftest import fill
from tests.node.conftest import Toy

X = np.array([0.5, 0.0], np.float32)


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory, toys: Toy) -> Path:
    """A node's folder with release 1."""
    folder = tmp_path_factory.mktemp("node")
    store = open_store(folder / "node.db")
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    Identity("n1", key.private_bytes_raw(), bytes(32), b"root", Settings(), toys.task).save(store)
    parts = {"stages": StageLog(store), "slots": Slots(folder / "slots"), "shadow": Shadow(store, toys.signature)}
    toys.put(1)
    Serving("n1", toys.signature, **parts, admit=admit, record=ignore).provision(toys, 1)  # type: ignore[arg-type]
    store.close()
    return folder


class Running:
    """A resident node in a thread, and a program that asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resident = Resident(folder, listen=f"unix:{folder / 'api'}", online=False, daily_bytes=None, version="0")
        self._thread = threading.Thread(target=self.resident.run)
        self._thread.start()
        self.client = _answered(f"unix:{folder / 'api'}")

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    def close(self) -> None:
        self.client.close()
        self.resident.stop()
        self._thread.join()


def _answered(where: str) -> Client:
    """A client of the node, as soon as it answers."""
    end = time.monotonic() + 10.0
    while True:
        try:
            return Client(where)
        except LinkError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_I11_a_full_disk_stops_no_answer_and_labels_are_taken_again_when_there_is_room(
    small_disk: Path, provisioned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "LABEL_TIMEOUT_S", 3.0)
    monkeypatch.setattr(resident, "IDLE_S", 0.05)
    running = Running(shutil.copytree(provisioned, small_disk / "node"))
    fill(small_disk)
    try:
        for _ in range(60):
            assert running.client.infer(X).index == 1
            time.sleep(2 * recorder.LINGER_S)
        with pytest.raises(LinkError, match="full"):
            running.client.label(running.client.infer(X).id, 1)
        (small_disk / "fill").unlink()
        assert running.client.label(running.client.infer(X).id, 1) == 1
        assert running.runs
    finally:
        running.close()
    assert running.events()[-1]["event"] == "stopped"
    assert any(event.get("lost") for event in running.events())


def test_a_fault_of_ours_ends_neither_answers_nor_the_next_try(
    provisioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = threading.Semaphore(0)

    def settle(agent: Agent) -> None:
        calls.release()
        raise ValueError("a fault")

    monkeypatch.setattr(resident, "IDLE_S", 0.01)
    monkeypatch.setattr(Agent, "settle", settle)
    running = Running(shutil.copytree(provisioned, tmp_path / "node"))
    try:
        assert all(calls.acquire(timeout=10) for _ in range(3))
        assert running.client.infer(X).index == 1
        assert running.runs
    finally:
        running.close()
    [failed] = [event for event in running.events() if event["event"] == "failed"]
    assert (failed["part"], failed["reason"]) == ("settle", "ValueError('a fault')")


def test_a_network_that_hangs_holds_up_no_way_back(
    provisioned: Path, toys: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release on probation that harms goes back while the shelf is being looked at, however long that takes."""
    folder = shutil.copytree(provisioned, tmp_path / "node")
    store = open_store(folder / "node.db")
    parts = {"stages": StageLog(store), "slots": Slots(folder / "slots"), "shadow": Shadow(store, toys.signature)}
    serving = Serving("n1", toys.signature, **parts, admit=admit, record=ignore)  # type: ignore[arg-type]
    toys.put(2, right=False, quota=100)
    rollout = Rollout(2, "salt", "f" * 64)
    serving.consider(rollout, toys)  # type: ignore[arg-type]
    serving.settle(rollout)
    store.close()
    hangs, over = threading.Event(), threading.Event()

    def pull(*_: object) -> None:
        hangs.set()
        over.wait(60)

    monkeypatch.setattr(resident._Nothing, "pull", pull)
    monkeypatch.setattr(resident, "BUSY_S", 0.05)
    running = Running(folder)
    try:
        assert hangs.wait(10)
        end = time.monotonic() + 20
        while (answer := running.client.infer(X)).index == 0 and time.monotonic() < end:
            running.client.label(answer.id, 1)
        assert answer.index == 1, "release 1 answers again"
    finally:
        over.set()
        running.close()
    assert "rolled-back" in {event["event"] for event in running.events()}


def test_a_reading_that_is_long_is_read_whole(
    provisioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "_VALUE_BYTES", 3 << 20)  # as if the toy's two values were many
    running = Running(shutil.copytree(provisioned, tmp_path / "node"))
    try:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(running.folder / "api"))
            raw.sendall(b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\n\r\n")
            raw.sendall(b" " * 6_000_000)
            assert raw.recv(1000).startswith(b"HTTP/1.1 400 "), "it is no question, and not too long"
    finally:
        running.close()


def test_a_damaged_page_of_the_store_stops_no_answer(provisioned: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(provisioned, tmp_path / "node")
    store = open_store(folder / "node.db")
    (page,) = store.execute("select rootpage from sqlite_master where name = 'reading'").fetchone()
    (size,) = store.execute("pragma page_size").fetchone()
    store.close()
    with open(folder / "node.db", "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 64)
    running = Running(folder)
    try:
        assert running.client.infer(X).index == 1
        running.resident.agent.mind()
        assert running.client.infer(X).index == 1
        assert running.runs
    finally:
        running.close()
    assert {"kept", "unrecorded"} <= {event["event"] for event in running.events()}
