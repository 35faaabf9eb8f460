"""What a node takes that has nothing to do: memory, processor and processes, beside an idle stock SuperNode.

``python -m benchmarks.idle_node`` enrols nodes with a real coordinator of the toy task, and lets three of them stand
for ``--minutes``: one with its link, one that only answers (``--offline``), and Flower's own ``flower-supernode`` with
a stock SuperLink at the other end. Memory is read after a minute, or at the end if that is sooner; every process of a
node counts. MB are of 2^20 bytes, as the kernel counts.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.toy_fleet import SETTINGS, ToyFleet, free_port
from fleet.output import Format

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

BARS = {"idle node": 100.0, "inference-only node": 60.0}  # MB of resident memory
SETTLED_S = 60.0
MB = 2**20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


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
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := read(int(folder.name), "stat").rpartition(")")[2].split():
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def memory(pids: list[int]) -> tuple[float, float]:
    """RSS and PSS of processes, MB."""
    totals = {"Rss": 0.0, "Pss": 0.0}
    for pid in pids:
        for line in read(pid, "smaps_rollup").splitlines()[1:]:
            name, amount = line.split()[:2]
            if name.rstrip(":") in totals:
                totals[name.rstrip(":")] += int(amount) * 1024 / MB
    return totals["Rss"], totals["Pss"]


def spent_s(pids: list[int]) -> float:
    """CPU seconds of processes and of their children that ended."""
    ticks = 0
    for pid in pids:
        ticks += sum(map(int, read(pid, "stat").rpartition(")")[2].split()[11:15]))
    return ticks * TICK_S


def read(pid: int, what: str) -> str:
    """Empty for a process that ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/{what}").read_text()
    except OSError:
        return ""


@contextmanager
def stock(folder: Path) -> Iterator[int]:
    """An idle SuperNode of Flower's, as it comes."""
    from benchmarks.superlink import superlink

    folder.mkdir()
    with superlink(folder) as link:
        command = [sys.executable, "-c", "from flwr.supernode.cli.flower_supernode import flower_supernode as f; f()"]
        command += ["--insecure", "--superlink", link.address, "--port", str(free_port())]
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # it starts one by its name
        environment = {**os.environ, "FLWR_HOME": str(folder), "PATH": programs}
        with open(folder / "supernode.log", "wb") as log:
            node = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603 - Flower's own
        try:
            yield node.pid
        finally:
            for pid in reversed(family(node.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()


@contextmanager
def ours(folder: Path) -> Iterator[dict[str, int]]:
    """An idle node and one that only answers, of a coordinator whose next round is far away; their process ids."""
    settings = SETTINGS.replace('every = "1s"', 'every = "1h"').replace("min_updates = 3", "min_updates = 5")
    fleet = ToyFleet(folder, nodes=2, settings=settings)
    online, offline = fleet.nodes.values()
    try:
        fleet.found()
        online.start()
        offline.start(more=("--offline",))
        for node in (online, offline):
            node.ready()
        yield {"idle node": online.pid, "inference-only node": offline.pid}
    finally:
        fleet.stop()


def measure(minutes: float) -> list[Figures]:
    """All of them in the same minutes."""
    with (
        tempfile.TemporaryDirectory() as name,
        ours(Path(name) / "ours") as nodes,
        stock(Path(name) / "stock") as other,
    ):
        roots = {**nodes, "idle flower-supernode": other}
        begun, before = time.monotonic(), {node: spent_s(family(pid)) for node, pid in roots.items()}
        say(f"all started; memory is read in {min(SETTLED_S, minutes * 60):.0f} s, CPU in {minutes:g} min")
        time.sleep(min(SETTLED_S, minutes * 60))
        if len(family(other)) < len(("flower-supernode", "flower-superexec")):
            raise RuntimeError("flower-supernode did not start whole")
        taken = {node: (len(family(pid)), *memory(family(pid))) for node, pid in roots.items()}
        say(", ".join(f"{node} {rss:.0f} MB" for node, (_, rss, _) in taken.items()))
        while (left := begun + minutes * 60 - time.monotonic()) > 0:
            time.sleep(min(left, 60.0))
            say(f"{(time.monotonic() - begun) / 60:.1f} min")
        return [
            Figures(
                node,
                processes,
                round(rss, 1),
                round(pss, 1),
                round(spent_s(family(roots[node])) - before[node], 2),
                round((time.monotonic() - begun) / 60, 2),
                BARS.get(node),
            )
            for node, (processes, rss, pss) in taken.items()
        ]


def say(what: str) -> None:
    """Progress, beside the figures."""
    print(what, file=sys.stderr, flush=True)


def main(
    minutes: Annotated[float, typer.Option(help="For how long they stand idle.", min=0.05)] = 5.0,
    format_: Annotated[Format, typer.Option("--format")] = Format.TEXT,
) -> None:
    """Measure; ends with 1 if a bar was passed."""
    rows = measure(minutes)
    if format_ is Format.JSON:
        print(json.dumps({"nodes": [asdict(row) for row in rows], "load": os.getloadavg()[0]}))
    else:
        table = Table("node", "processes", "RSS MB", "PSS MB", f"CPU s in {minutes:g} min", "bar, RSS MB")
        for row in rows:
            figures = (row.processes, row.rss_mb, row.pss_mb, row.cpu_s, row.bar_mb or "")
            table.add_row(row.node, *map(str, figures))
        Console().print(table)
    raise typer.Exit(any(row.bar_mb and row.rss_mb > row.bar_mb for row in rows))


if __name__ == "__main__":
    typer.run(main)
