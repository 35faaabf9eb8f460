"""The third transport: a stock SuperLink and a stock SuperNode a node, with a FAB that holds no code."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from benchmarks import superlink as stock
from coordinator.flower_app import StockSuperLink
from node import keys
from node.flower_app import FOLDER
from tests.authority import Authority
from tests.transports.networks import LONGEST, PATIENCE_S, Network, Node

LOOK_S = 0.25  # every look at a stock SuperLink is some requests over TLS
ENDING_S = 20.0
# Stock in all but one thing: between two looks for messages it sleeps 3 s, whatever it is told, and here half of one.
SUPERNODE = """
import time, types
import flwr.supernode.start_client_internal as loop
from flwr.supernode.cli.flower_supernode import flower_supernode
loop.time = types.SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.5)))
flower_supernode()
"""
# What Flower starts finds the code beside this test, and its SuperExec looks for work more often than once a second.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "OMP_WAIT_POLICY": "PASSIVE",
}


class Stock(Network):
    """(c) Flower's own programs, node authentication and all: a process for every message."""

    def open(self) -> None:
        self.stack.callback(await_end, self.folder.parent)
        self.superlink = self.stack.enter_context(stock.superlink(self.folder, certificates(self.folder)))
        mine = StockSuperLink(self.stack.enter_context(self.superlink.run()))
        self.grid, self.directory = mine.grid(wait=self.work, longest=LONGEST), mine
        self.fleet_app, self.knows = mine.app, mine.knows

    def connect(self, node: Node) -> None:
        if "key" not in node.parts:
            node.parts["key"], _ = keys.write(node.folder)
            self.superlink.register(node.public_key)
        node.parts["process"] = supernode(node.folder, node.parts["key"], self.superlink)
        self.stack.callback(kill, node.parts["process"])

    def disconnect(self, node: Node) -> None:
        end(node.parts["process"])

    def dismiss(self, node: Node) -> None:
        self.access.revoke(node.name)
        kill(node.parts["process"])

    def break_app(self, node: Node) -> None:
        (node.folder / "node.db").unlink()
        (node.folder / "node.db").mkdir()  # what SQLite says of it is no error of ours, and nobody expects it

    def work(self) -> None:
        time.sleep(LOOK_S)


def certificates(folder: Path) -> stock.Certificates:
    """An authority, and a server on loopback that it vouches for: stock nodes prove who they are over TLS only."""
    authority, server = Authority.make("ours"), folder / "server.pem"
    authority.context(folder)
    (folder / "authority.pem").write_text(authority.pem)
    return stock.Certificates(folder / "authority.pem", server, server)


def supernode(folder: Path, key: Path, superlink: stock.SuperLink) -> subprocess.Popen[bytes]:
    """A stock SuperNode for the node of a folder, in a process group of its own."""
    command = [sys.executable, "-c", SUPERNODE]
    assert superlink.certificates
    command += ["--superlink", superlink.address, "--root-certificates", str(superlink.certificates.authority)]
    command += ["--auth-supernode-private-key", str(key), "--port", str(stock.free_port())]
    environment = {**stock.quiet(folder / "flower"), **ENVIRONMENT, FOLDER: str(folder)}
    with open(folder / "supernode.log", "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a SuperNode say goodbye, and end it."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDING_S)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a SuperNode, its SuperExec and whatever answers a message just now, if they have not ended already."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def running(folder: Path) -> list[str]:
    """Command lines of the processes to which Flower's home is in this folder."""
    home = f"FLWR_HOME={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile, or is not ours
            if home in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def await_end(folder: Path) -> None:
    """Wait until no process of a stock fleet is left, or fail."""
    until = time.monotonic() + PATIENCE_S
    while left := running(folder):
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.05)
