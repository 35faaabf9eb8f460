"""What a node's children take while a fleet lives: memory at its peak, and how long they are there.

``python -m benchmarks.learning_node`` runs ``edgefleet up --until-promoted`` and watches every child that a node starts
to pull or to learn; the resident process beside it is what ``benchmarks.idle_node`` weighs. MB are of 2^20 bytes, and
the peak is the kernel's own (``VmHWM``): what a child shares with others counts in full.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.idle_node import MB, family, read
from fleet.output import Format

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

LOOK_S = 0.1
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclass(slots=True)
class Child:
    """One child of a node: a child that has torch in memory is there to learn.

    Attributes:
        peak_mb: Its resident memory at most, as last seen.
        seconds: From when it was first seen to when it was last.
    """

    learns: bool = False
    peak_mb: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """All children of one kind."""

    kind: str
    children: int
    peak_mb_mean: float
    peak_mb_max: float
    seconds_mean: float
    seconds_max: float


def watch(fleet: "subprocess.Popen[bytes]") -> list[Child]:
    """Every child that was seen until the fleet ended."""
    seen: dict[int, tuple[float, Child]] = {}
    while fleet.poll() is None:
        for pid in _errands(fleet.pid):
            if peak := PEAK.search(read(pid, "status")):
                since, child = seen.setdefault(pid, (time.monotonic(), Child()))
                child.peak_mb = int(peak[1]) * 1024 / MB
                child.learns = child.learns or "libtorch" in read(pid, "maps")
                child.seconds = time.monotonic() - since
        time.sleep(LOOK_S)
    return [child for _, child in seen.values()]


def _errands(root: int) -> Iterator[int]:
    return (pid for pid in family(root) if "node.errand" in read(pid, "cmdline"))


def measure(nodes: int) -> list[Figures]:
    """Run a fleet to the first release that everybody has committed."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "fleet", "up", "--nodes", str(nodes), "--until-promoted", "--format", "json"]
        with subprocess.Popen([*command, "--out", f"{name}/fleet"], stdout=sys.stderr) as fleet:  # noqa: S603 - our own program
            children = watch(fleet)
        if fleet.returncode:
            raise RuntimeError(f"the fleet ended with {fleet.returncode}")
    return [
        _figures(kind, [child for child in children if child.learns is learns])
        for kind, learns in (("pulls", False), ("learns", True))
    ]


def _figures(kind: str, children: list[Child]) -> Figures:
    peaks, seconds = [child.peak_mb for child in children], [child.seconds for child in children]
    count = max(1, len(children))
    mean_mb, mean_s = sum(peaks) / count, sum(seconds) / count
    figures = (mean_mb, max(peaks, default=0.0), mean_s, max(seconds, default=0.0))
    return Figures(kind, len(children), *(round(value, 1) for value in figures))


def main(
    nodes: Annotated[int, typer.Option(help="As of edgefleet up.", min=2, max=16)] = 3,
    format_: Annotated[Format, typer.Option("--format")] = Format.TEXT,
) -> None:
    """Run a fleet and weigh its nodes' children."""
    rows = measure(nodes)
    if format_ is Format.JSON:
        print(json.dumps({"children": [asdict(row) for row in rows], "load": os.getloadavg()[0]}))
        return
    table = Table("a child that", "children", "peak MB, mean", "peak MB, most", "seconds, mean", "seconds, most")
    for row in rows:
        table.add_row(*map(str, asdict(row).values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
