"""What a sync costs a node over Flower's Fleet API: seconds, CPU and memory, with a stock SuperLink at the other end.

``python -m benchmarks.link`` measures the smartwatch's 1,036 weights on a plain loopback, and a task of a million
weights at a round trip of 100 ms, over a proxy that delays. A sync is one message: the ask is fetched, the node's
ClientApp answers it from what it has ready, and the answer with all of its weights is pushed. CPU is that of the
node's whole process. It ends with 1 if a bar is passed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

WAYS = ((1036, 0.0), (1_000_000, 0.1))  # weights, and seconds of a round trip
CPU_BAR_S = 0.05  # of a message of a small task: what a million weights cost beyond it is their bytes
SYNC_BAR_S = 3.0


def main() -> None:
    """Measure, and print one table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, help="of one task, instead of the two")
    parser.add_argument("--round-trip", type=float, default=0.0, help="seconds, with --weights")
    parser.add_argument("--syncs", type=int, default=20)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--node", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.node:
        play_node(*given.node, weights=given.weights)
        return
    rows = []
    for weights, round_trip_s in ((given.weights, given.round_trip),) if given.weights else WAYS:
        print(f"{given.syncs} syncs of {weights} weights at {1000 * round_trip_s:.0f} ms", file=sys.stderr, flush=True)
        rows.append(measure(weights, round_trip_s, given.syncs))
    if given.format == "json":
        print(json.dumps(rows))
    else:
        show(rows)
    sys.exit(any(row["sync_s"] > SYNC_BAR_S for row in rows) or rows[0]["sync_cpu_s"] > CPU_BAR_S)


def show(rows: list[dict[str, Any]]) -> None:
    """One table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    print(f"bars: a sync {SYNC_BAR_S:g} s; its CPU, of the smallest task, {CPU_BAR_S:g} s")


def measure(weights: int, round_trip_s: float, syncs: int) -> dict[str, Any]:
    """Ask a node of its own process ``syncs`` times, and wait for each answer."""
    from flwr.app import ConfigRecord, Message, RecordDict

    from benchmarks.proxy import Fault, Proxy
    from benchmarks.superlink import superlink
    from fleet.enrolment import pem

    key = ec.generate_private_key(ec.SECP384R1())
    with (
        tempfile.TemporaryDirectory() as name,
        superlink(Path(name)) as link,
        Proxy(("127.0.0.1", link.port), Fault(round_trip_s=round_trip_s)) as proxy,
        link.run() as grid,
    ):
        folder = Path(name)
        folder.joinpath("key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        number = link.register(pem(key.public_key()))
        command = [sys.executable, "-m", "benchmarks.link", "--weights", str(weights)]
        command += ["--node", f"http://127.0.0.1:{proxy.port}", name, str(number)]
        node = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert node.stdin  # noqa: S101
        assert node.stdout  # noqa: S101
        idle = json.loads(node.stdout.readline())
        lines = []
        for _ in range(syncs + 1):
            record = ConfigRecord({"body": os.urandom(500), "signature": bytes(64)})
            ids = grid.push_messages([Message(RecordDict({"instruction": record}), number, "train.update")])
            print("step", file=node.stdin, flush=True)
            lines.append(json.loads(node.stdout.readline()))
            if len(list(grid.pull_messages(ids))) != 1:
                raise RuntimeError("a sync was not answered")
        node.stdin.close()
        node.wait()
    first, warm = lines[0], lines[1:]
    return {
        "weights": weights,
        "round_trip_s": round_trip_s,
        "first_sync_s": first["wall_s"],
        "sync_s": median(line["wall_s"] for line in warm),
        "sync_cpu_s": median(line["cpu_s"] for line in warm),
        "idle_rss_mb": idle["rss_mb"],
        "rss_mb": max(line["rss_mb"] for line in lines),
        "load": os.getloadavg()[0],
    }


def play_node(url: str, folder: str, number: str, *, weights: int) -> None:
    """A node that makes a step for each line it reads, and prints what that cost."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from fleet.enrolment import pem
    from fleet.flwr_compat import FleetApi
    from fleet.messages import CODEC
    from node.coordinator_client import CoordinatorClock
    from node.link import FlowerPost, Link
    from node.transport import Transport

    app = ClientApp()
    payload = os.urandom(4 * weights)

    @app.train("update")
    def update(message: Message, context: Context) -> Message:
        sealed = ConfigRecord({"body": bytes(700), "signature": bytes(64)})
        delta = Array("float32", (weights,), CODEC, payload)
        return Message(RecordDict({"update": sealed, "delta": ArrayRecord({"delta": delta})}), reply_to=message)

    key = load_pem_private_key(Path(folder, "key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101
    clock = CoordinatorClock(lambda: datetime.now(UTC))
    fleet = FleetApi(FlowerPost(Transport(url), key, clock))
    link = Link(fleet, app, public_key=pem(key.public_key()), clock=clock, chance=lambda: 0.5, node_id=int(number))
    print(json.dumps(_cost(lambda: link.step(0.0))), flush=True)
    for _ in sys.stdin:
        print(json.dumps(_cost(lambda: link.step(1.0))), flush=True)
    link.close()


def _cost(step: Callable[[], float]) -> dict[str, float]:
    wall, cpu = time.monotonic(), time.process_time()
    step()
    return {
        "wall_s": round(time.monotonic() - wall, 4),
        "cpu_s": round(time.process_time() - cpu, 4),
        "rss_mb": _resident_mb(),
    }


def _resident_mb() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(fields["VmRSS"].split()[0]) / 1024, 1)


if __name__ == "__main__":
    main()
