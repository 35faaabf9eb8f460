"""A command of ``edgefleet`` as a person starts it, and every process that comes of it."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "fleet"]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part),
    "OMP_NUM_THREADS": "1",
}
MARK = "TEST_PROGRAM"  # in the environment of a program, and so in that of all its children
PATIENCE_S = 60.0


def edgefleet(*command: str, given: str = "", cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *command],
        input=given,
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def only_line(said: str) -> str:
    """What an error says: one line, which names the program."""
    assert said.count("\n") == 1, said
    assert said.startswith("edgefleet: "), said
    return said.removeprefix("edgefleet: ").rstrip()


def _with_a_terminal() -> None:
    """Even where the tests were started to outlive theirs."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Program:
    """Runs from ``with`` on; afterwards nothing of it is left, however it went."""

    def __init__(self, folder: Path, *command: str) -> None:
        """``folder`` is where it runs, and where ``said`` is written."""
        self._folder = folder
        self._command = command
        self._mark = secrets.token_hex(8)

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True, parents=True)
        with open(self._folder / f"{self._mark}.log", "wb") as log:
            self._process = subprocess.Popen(
                [*COMMAND, *self._command],
                cwd=self._folder,
                env={**os.environ, **ENVIRONMENT, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_with_a_terminal,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pid in self.family():
            os.kill(pid, signal.SIGKILL)

    @property
    def said(self) -> str:
        """All that it wrote, on both streams."""
        return (self._folder / f"{self._mark}.log").read_text()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the program alone, or to its group, as a terminal does."""
        if group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def ended(self) -> int:
        """The exit code, once it has ended."""
        return self._process.wait(PATIENCE_S)

    def family(self) -> list[int]:
        """Every living process that came of it, whoever its parent is by now."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self._mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it ended meanwhile, or is another user's
                continue
        return found

    def children(self) -> list[int]:
        """The family without the program itself."""
        return [pid for pid in self.family() if pid != self._process.pid]

    def is_gone(self) -> bool:
        """Whether nothing of it is left, at once or in a moment."""
        end = time.monotonic() + 5.0
        while left := self.family():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return not left
