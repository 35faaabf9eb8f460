"""Runs a program of ours that ends itself with SIGKILL at a named durable step; the program knows nothing of it.

``python -m benchmarks.die_at --log FILE [--at MOMENT:TIMES:STEP] MODULE ARGUMENT …`` writes the name of every durable
step to FILE as it is taken, and dies ``before`` or ``after`` the step that is named, the TIMES-th time it comes to it.

A step is named by who takes it and what it does: ``settle_round: commit base+round+update`` is a transaction that wrote
these tables, ``publish: write N.snapshot.json`` stands before the first byte of a file and ``publish: replace
N.snapshot.json`` before the finished file takes its name; a forgotten file is ``clear: unlink H``. What a node lets its
child do is part of it: the child dies there, and its parent with it.
"""

import argparse
import os
import re
import runpy
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, Self

OURS = ("coordinator", "fleet", "node")
HEADS = ("coordinator.coordinator", "coordinator.delivery", "coordinator.bases")  # their methods name what is done
HANDS = ("fleet.durable", "node.store")  # everybody writes through these
FORGETFUL = ("close", "slots.clear")  # who removes files that were state
CHILD = "node.errand"
_WRITES = re.compile(r"\s*(?:insert\s+(?:or\s+\w+\s+)?into|update|delete\s+from|replace\s+into)\s+\"?(\w+)", re.I)


class Fate:
    """Takes down the steps that are passed, and ends the process at one of them."""

    def __init__(self, log: Path, at: str | None) -> None:
        """``at`` is ``moment:times:step``; None for a program that lives."""
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        moment, times, self._step = (at or "never:0:").split(":", 2)
        self._moment, self._left = moment, int(times)
        self._lock = threading.Lock()

    @contextmanager
    def passing(self, step: str) -> Iterator[None]:
        """What is done inside is the step."""
        os.write(self._log, f"{step}\n".encode())
        with self._lock:
            fatal = step == self._step
            self._left -= fatal
            fatal = fatal and self._left == 0
        if fatal and self._moment == "before":
            die()
        yield
        if fatal:
            die()


def die() -> None:
    """End this process, and the node whose child it is, as a power cut does."""
    if sys.argv[0] == CHILD:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # the signal comes


def plain(name: str) -> str:
    """The same for every round: numbers are N, digests are H."""
    return re.sub(r"\d+", "N", re.sub(r"[0-9a-f]{16,}", "H", name))


def taker() -> str:
    """Who takes the step: the coordinator's method, or else the innermost function of ours."""
    frame, found = sys._getframe(1), ""
    while above := frame.f_back:
        frame = above
        module = str(frame.f_globals.get("__name__", ""))
        if module in HEADS:
            return frame.f_code.co_name.strip("_")
        if not found and module.split(".")[0] in OURS and module not in HANDS:
            found = f"{module.rpartition('.')[2]}.{frame.f_code.co_name.strip('_')}"
    return found or "Flower"


def watch_files(fate: Fate) -> None:
    """Let files be written, named and forgotten only past ``fate``."""
    from fleet import durable

    write, replace, unlink = durable.write, os.replace, os.unlink

    @wraps(write)
    def writing(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        with fate.passing(f"{taker()}: write {plain(path.name)}"):
            write(path, data, mode=mode)

    def replacing(part: Any, path: Any, **more: Any) -> None:
        if not str(part).endswith(".part"):
            replace(part, path, **more)
            return
        with fate.passing(f"{taker()}: replace {plain(Path(path).name)}"):
            replace(part, path, **more)

    def unlinking(path: Any, **more: Any) -> None:
        who = taker()
        if who not in FORGETFUL:  # temporary files are no state
            unlink(path, **more)
            return
        with fate.passing(f"{who}: unlink {plain(Path(path).name)}"):
            unlink(path, **more)

    durable.write, os.replace, os.unlink = writing, replacing, unlinking  # type: ignore[assignment]


class Cursor(sqlite3.Cursor):
    """Of ``Connection``."""

    connection: "Connection"

    def execute(self, sql: str, *values: Any) -> Self:
        """Past the fate of the step that it is, if it is one."""
        with self.connection.fate_of(sql):
            return super().execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> Self:
        """The same."""
        with self.connection.fate_of(sql):
            return super().executemany(sql, *values)


class Connection(sqlite3.Connection):
    """Knows which of its statements are durable when they return, and what the transaction wrote."""

    fate: Fate
    _written: frozenset[str] = frozenset()

    def cursor(self, factory: Any = Cursor) -> Any:
        """One of ours."""
        return super().cursor(factory)

    def execute(self, sql: str, *values: Any) -> Any:
        """By one of our cursors."""
        return self.cursor().execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> Any:
        """By one of our cursors."""
        return self.cursor().executemany(sql, *values)

    def commit(self) -> None:
        """A step, if anything was written."""
        with self._end() if self.in_transaction else nullcontext():
            super().commit()

    def rollback(self) -> None:
        """Nothing was written."""
        self._written = frozenset()
        super().rollback()

    def fate_of(self, sql: str) -> AbstractContextManager[None]:
        """What the statement must pass: nothing, if what was durable before it is so after it, and no more."""
        word = sql.split(None, 1)[0].lower().rstrip(";") if sql.strip() else ""
        if word in {"begin", "rollback"}:
            self._written = frozenset()
        elif word in {"commit", "end"}:
            return self._end()
        elif found := _WRITES.match(sql):
            self._written |= {found[1]}
            if self.isolation_level is None and not self.in_transaction:
                return self._end()
        return nullcontext()

    def _end(self) -> AbstractContextManager[None]:
        tables, self._written = "+".join(sorted(self._written)), frozenset()
        return self.fate.passing(f"{taker()}: commit {tables}") if tables else nullcontext()


def watch_stores(fate: Fate) -> None:
    """Let every transaction of SQLite that wrote something end only past ``fate``."""
    Connection.fate, connect = fate, sqlite3.connect

    @wraps(connect)
    def connecting(*arguments: Any, **more: Any) -> sqlite3.Connection:
        opened: sqlite3.Connection = connect(*arguments, **{"factory": Connection, **more})
        return opened

    sqlite3.connect = sqlite3.dbapi2.connect = connecting  # type: ignore[assignment]


def watch_children(own: list[str]) -> None:
    """A node's child is run by this module too."""

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: Any, *arguments: Any, **more: Any) -> None:
            if isinstance(command, list) and command[-1] == CHILD:
                command = [sys.executable, "-m", "benchmarks.die_at", *own, CHILD]
            super().__init__(command, *arguments, **more)

    subprocess.Popen = Popen  # type: ignore[assignment, misc]


def watch_change(own: list[str]) -> None:
    """A program that becomes another one stays under this module."""
    become = os.execv

    def becoming(path: str, command: list[str]) -> None:
        module = command.index("-m") + 1
        become(path, [command[0], "-m", "benchmarks.die_at", *own, *command[module:]])

    os.execv = becoming  # type: ignore[assignment]


def main() -> None:
    """Patch, and become the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--at")
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    fate = Fate(given.log, given.at)
    watch_stores(fate)
    watch_files(fate)
    own = ["--log", str(given.log), *(["--at", given.at] if given.at else [])]
    watch_children(own)
    watch_change(own)
    sys.argv = [given.module, *given.arguments]
    runpy.run_module(given.module, run_name="__main__")


if __name__ == "__main__":
    main()
