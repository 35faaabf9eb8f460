"""Kill a simulation with SIGKILL at random moments, resume it, and look for anything lost or counted twice.

``python -m benchmarks.kills`` prints a row a kill and ends with 1 if a promise was broken.
"""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fleet.privacy.gaussian import Budget
from node.ledger import Head, Ledger


@dataclass
class Witness:
    """What was seen of a run so far, by which later sights are judged."""

    heads: dict[str, Head] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)

    def examine(self, run: Path) -> list[str]:
        """Every promise that the run's folder breaks now, in words."""
        broken = self._registry(run / "coordinator" / "registry.db")
        broken += self._grow("timestamp", _timestamp(run))
        for store in sorted((run / "nodes").glob("*/node.db")):
            broken += self._node(store)
        return broken

    def _registry(self, path: Path) -> list[str]:
        if not path.exists():
            return []
        with closing(sqlite3.connect(path)) as registry:
            if not registry.execute("select 1 from sqlite_master where name = 'update'").fetchone():
                return []
            rows = registry.execute('select key, payload, aggregate from "update"').fetchall()
            counted = [row for row in rows if row[2] is not None]
            broken = [f"delta {row[1][:8]} is in two aggregates" for row in counted if _count(counted, 1, row[1]) > 1]
            broken += [f"update {key[:8]} left its aggregate" for key in self.counted - {row[0] for row in counted}]
            self.counted |= {row[0] for row in counted}
            for kind in ("base", "release", "round"):
                newest = registry.execute(f"select coalesce(max(number), -1) from {kind}").fetchone()[0]  # noqa: S608
                broken += self._grow(kind, newest)
        return broken

    def _node(self, path: Path) -> list[str]:
        name = path.parent.name
        with closing(sqlite3.connect(path, isolation_level=None)) as store:
            if not store.execute("select 1 from sqlite_master where name = 'stage'").fetchone():
                return []
            ledger = Ledger(store, Budget(8.0, 1e-5))  # opening it walks the chain
            broken = []
            if name in self.heads and not ledger.contains(self.heads[name]):
                broken.append(f"{name}: charge {self.heads[name].seq} was lost")
            self.heads[name] = ledger.head()
            released = store.execute("select coalesce(sum(mu2), 0) from session").fetchone()[0]
            charged = store.execute("select coalesce(sum(mu2), 0) from charge where purpose = 'session'").fetchone()[0]
            if released > charged:
                broken.append(f"{name}: released {released} of {charged} charged")
        return broken + self._grow(f"{name} pointer", _pointer(path.parent))

    def _grow(self, what: str, number: int) -> list[str]:
        before = self.numbers.get(what, -1)
        self.numbers[what] = max(before, number)
        return [f"{what} fell from {before} to {number}"] if number < before else []


def _count(rows: list[tuple[str, str, int | None]], column: int, value: str) -> int:
    return sum(row[column] == value for row in rows)


def _timestamp(run: Path) -> int:
    path = run / "coordinator" / "repository" / "metadata" / "timestamp.json"
    return int(json.loads(path.read_bytes())["signed"]["version"]) if path.exists() else -1


def _pointer(node: Path) -> int:
    path = node / "slots" / "active.json"
    return int(json.loads(path.read_bytes())["active"]) if path.exists() else -1


def _command(run: Path, flags: list[str]) -> list[str]:
    begun = (run / "run.json").exists()
    tail = ["--resume", str(run)] if begun else ["--out", str(run), *flags]
    return [sys.executable, "-m", "fleet", "simulate", "--format", "json", *tail]


def play(run: Path, kills: int, *, flags: list[str], shortest_s: float, longest_s: float, seed: int) -> list[list[str]]:
    """Kill a run ``kills`` times, then let it end; what was broken after each kill and at the end."""
    rng, witness = random.Random(seed), Witness()  # noqa: S311 - when to kill is no secret
    broken: list[list[str]] = []
    while len(broken) < kills:
        child = subprocess.Popen(_command(run, flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        try:
            child.wait(rng.uniform(shortest_s, longest_s))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            broken.append(witness.examine(run))
        else:
            break
    subprocess.run(_command(run, flags), check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return [*broken, witness.examine(run)]


def main(
    kills: Annotated[int, typer.Option(help="How often to kill.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
) -> None:
    """Kill and resume the built-in simulation; where it ends before all kills are done, another one begins."""
    console, started = Console(), time.monotonic()
    table = Table("run", "kill", "broken promises")
    broken: list[list[str]] = []
    ends: list[str] = []
    while len(broken) < kills:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            outcome = play(run, kills - len(broken), flags=[], shortest_s=3.0, longest_s=8.0, seed=seed + len(ends))
            end = json.loads((run / "result.json").read_bytes())
        for index, found in enumerate(outcome, 1):
            table.add_row(str(len(ends)), str(index) if index < len(outcome) else "end", ", ".join(found) or "none")
        broken += outcome[:-1] if not outcome[-1] else outcome
        ends.append(f"{end['rounds']} rounds, {end['updates']} updates, epsilon {end['epsilon_max']:.4f}")
    console.print(table)
    console.print(f"{len(broken)} kills in {time.monotonic() - started:.0f} s; runs ended with: {'; '.join(ends)}")
    raise typer.Exit(any(broken))


if __name__ == "__main__":
    typer.run(main)
