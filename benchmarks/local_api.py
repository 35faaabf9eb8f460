"""What the local API costs over a bare ``session.run``, and how much memory a node takes that only answers.

``python -m benchmarks.local_api`` starts such a node in a process of its own, and asks it one reading at a time over
one connection. It keeps every reading meanwhile, as nodes do.
"""

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.answering_node import SHAPE
from fleet.artifact import logits, open_session


@dataclass(frozen=True, slots=True)
class Row:
    """One way to ask, microseconds."""

    way: str
    p50_us: float
    p99_us: float
    over_bare: float  # ratio of the medians


def make(path: Path) -> None:
    """The artifact of a small convolutional net, weights as they were made."""
    from benchmarks.requantize import TASKS
    from coordinator.requantizer import register
    from fleet.task import weights_of

    task = next(task for task in TASKS if task.name == "two_convolutions")
    weights = weights_of(task.model())
    template = register(task, weights).template
    path.write_bytes(template.artifact(template.quantize(weights)))


def binary(x: np.ndarray) -> bytes:
    """A whole HTTP request with the reading as bytes."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, *SHAPE], "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return _request(head + x.tobytes(), f"Inference-Header-Content-Length: {len(head)}\r\n")


def as_json(x: np.ndarray) -> bytes:
    """A whole HTTP request with the reading as JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, *SHAPE], "data": x.ravel().tolist()}
    return _request(json.dumps({"inputs": [tensor]}).encode(), "")


def _request(body: bytes, more: str) -> bytes:
    head = f"POST /v2/models/task/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def connected(address: str) -> socket.socket:
    """A connection to the node."""
    if address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(address.removeprefix("unix:"))
        return client
    host, port = address.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def ask(client: socket.socket, request: bytes) -> None:
    """One exchange; the answers are small enough for one packet."""
    client.sendall(request)
    if not client.recv(65536).startswith(b"HTTP/1.1 200"):
        raise RuntimeError("the node refused a reading of the benchmark")


def timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """p50 and p99 in microseconds, after a tenth as many to warm up."""
    for _ in range(repeats // 10):
        call()
    times = np.empty(repeats)
    for i in range(repeats):
        begun = perf_counter()
        call()
        times[i] = perf_counter() - begun
    p50, p99 = np.percentile(times, [50, 99]) * 1e6
    return float(p50), float(p99)


def measure(folder: Path, repeats: int) -> tuple[list[Row], dict[str, float], dict[str, float]]:
    """All ways in turn, and the node's memory before and after."""
    x = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    session = open_session((folder / "artifact.onnx").read_bytes())
    ways: dict[str, Callable[[], object]] = {"bare session.run": lambda: logits(session, x)}
    command = [sys.executable, "-m", "benchmarks.answering_node", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:  # noqa: S603
        assert node.stdin is not None  # noqa: S101 - for the type checker
        assert node.stdout is not None  # noqa: S101
        clients = {a.split(":")[0]: connected(a) for a in json.loads(node.stdout.readline())}
        for name, client in clients.items():
            for request in (binary(x), as_json(x)):
                how = "binary" if b"Inference-Header" in request else "JSON"
                ways[f"{'Unix socket' if name == 'unix' else 'TCP'}, {how}"] = _asking(client, request)
        before = _state(node)
        results = {way: timed(call, repeats) for way, call in ways.items()}
        after = _state(node)
        for client in clients.values():
            with closing(client):
                client.shutdown(socket.SHUT_RDWR)
        node.stdin.close()
    bare = results["bare session.run"][0]
    return [Row(way, p50, p99, p50 / bare) for way, (p50, p99) in results.items()], before, after


def _asking(client: socket.socket, request: bytes) -> Callable[[], None]:
    return lambda: ask(client, request)


def _state(node: "subprocess.Popen[str]") -> dict[str, float]:
    print(file=node.stdin, flush=True)
    state: dict[str, float] = json.loads(node.stdout.readline())  # type: ignore[union-attr]
    return state


def main(
    repeats: Annotated[int, typer.Option(help="Requests of each way.")] = 5000,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure every way to ask."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "artifact.onnx"
        make_ = [sys.executable, "-c", f"from benchmarks.local_api import *; make(Path({str(path)!r}))"]
        subprocess.run(make_, check=True)  # noqa: S603 - ours; torch would stand in this process's caches
        rows, before, after = measure(Path(temporary), repeats)
    if json_:
        print(json.dumps({"rows": [asdict(row) for row in rows], "before": before, "after": after}))
        return
    table = Table("way", "p50 µs", "p99 µs", "× bare p50")
    for row in rows:
        table.add_row(row.way, f"{row.p50_us:.1f}", f"{row.p99_us:.1f}", f"{row.over_bare:.2f}")
    Console().print(table)
    print(f"node's RSS: {before['rss_mb']:.1f} MB before the first request, {after['rss_mb']:.1f} MB after the last")
    print(f"readings answered and not kept: {after['unrecorded']:.0f}")


if __name__ == "__main__":
    typer.run(main)
