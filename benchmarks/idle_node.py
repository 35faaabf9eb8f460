"""What a node takes that has nothing to do: memory, processor and processes, beside an idle stock SuperNode.

``python -m benchmarks.idle_node`` enrols nodes with a real coordinator of the toy task, and lets three of them stand
for ``--minutes``: one with its link, one that only answers (``--offline``), and Flower's own ``flower-supernode`` with
a stock SuperLink at the other end. Memory is read after a minute, or at the end if that is sooner; every process of a
node counts. MB are of 2^20 bytes, as the kernel counts.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

BARS = {"idle node": 100.0, "inference-only node": 60.0}  # MB of resident memory
SETTLED_S = 60.0
MB = 2**20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Format(StrEnum):
    """How the figures are printed."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one node takes.

    Attributes:
        rss_mb: Resident memory of all its processes; what they share with others counts in full.
        pss_mb: The same, what is shared counting by shares.
        cpu_s: Of all its processes in ``minutes``, which begin when it has started.
    """

    node: str
    processes: int
    rss_mb: float
    pss_mb: float
    cpu_s: float
    minutes: float
    bar_mb: float | None


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def memory(pids: list[int]) -> tuple[float, float]:
    """RSS and PSS of processes, MB."""
    totals = {"Rss": 0.0, "Pss": 0.0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, amount = line.split()[:2]
            if name.rstrip(":") in totals:
                totals[name.rstrip(":")] += int(amount) * 1024 / MB
    return totals["Rss"], totals["Pss"]


def spent_s(pids: list[int]) -> float:
    """CPU seconds of processes and of their children that ended."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks * TICK_S


@contextmanager
def stock(folder: Path) -> Iterator[int]:
    """An idle SuperNode of Flower's, as it comes."""
    from benchmarks.superlink import superlink
    from fleet.enrolment import pem

    key = ec.generate_private_key(ec.SECP384R1())
    folder.mkdir()
    folder.joinpath("key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    folder.joinpath("key.pem").chmod(0o600)
    folder.joinpath("key.pub").write_bytes(pem(key.public_key()))
    with superlink(folder) as link:
        command = [sys.executable, "-c", "from flwr.supernode.cli.flower_supernode import flower_supernode as f; f()"]
        command += ["--insecure", "--superlink", link.address, "--port", "0"]
        with open(folder / "supernode.log", "wb") as log:
            node = subprocess.Popen(  # noqa: S603 - Flower's own program
                command, env={**os.environ, "FLWR_HOME": str(folder)}, stdout=log, stderr=log
            )
        try:
            yield node.pid
        finally:
            for pid in reversed(family(node.pid)):
                subprocess.run(["kill", "-9", str(pid)], check=False)  # noqa: S603, S607
            node.wait()
