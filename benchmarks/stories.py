"""Every story as a person plays it: how long it takes, and what it tells.

``python -m benchmarks.stories`` prints a row a story, with the wall seconds of the run and of the whole command, and
under the table what each story told.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fleet.output import Format
from simulations.stories import STORIES


@dataclass(frozen=True, slots=True)
class Row:
    """One story: its run, the command with its start and its end, the size of its report, and what it told."""

    story: str
    wall_s: float
    command_s: float
    report_bytes: int
    told: list[str]
    figures: dict[str, Any]


def measure(name: str, folder: Path) -> Row:
    """Play a story without flags."""
    command = [sys.executable, "-m", "fleet", "simulate", "--story", name, "--out", str(folder), "--format", "json"]
    start = time.monotonic()
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 - our own command
    result = json.loads(shown.stdout)
    size = (folder / "report.html").stat().st_size
    story = result["story"]
    return Row(name, result["wall_s"], time.monotonic() - start, size, story["told"], story["figures"])


def main(
    format_: Annotated[Format, typer.Option("--format", help="A table for people, or one JSON object.")] = Format.TEXT,
) -> None:
    """Play all stories, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        shown = track(list(STORIES), "playing", console=Console(stderr=True))
        rows = [measure(name, Path(folder) / name) for name in shown]
    if format_ is Format.JSON:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    table = Table("story", "run, s", "command, s", "report, kB")
    for row in rows:
        table.add_row(row.story, f"{row.wall_s:.1f}", f"{row.command_s:.1f}", f"{row.report_bytes / 1000:.0f}")
    console = Console()
    console.print(table)
    for row in rows:
        console.print(row.story, *row.told, sep="\n", end="\n\n")


if __name__ == "__main__":
    typer.run(main)
