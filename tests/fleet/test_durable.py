"""Files that survive a power cut at any instant: the old bytes or the new ones, whole."""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet import durable
from tests.power_cut import PowerCut

STEPS = ("open", "fsync", "replace", "open", "fsync")  # of the part, of its bytes, over the file; the folder's


class Disk:
    """Passes calls on to the real disk, notes them, and cuts the power before or after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, before: int = -1, after: int = -1) -> None:
        self.steps: list[str] = []
        self._before, self._after = before, after
        for name in set(STEPS):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step = len(self.steps)
            self.steps.append(name)
            if step == self._before:
                raise PowerCut
            result = real(*args, **kwargs)
            if step == self._after:
                raise PowerCut
            return result

        return call


def test_bytes_are_on_the_disk_before_they_take_the_name_and_the_name_before_we_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        durable.write(tmp_path / "file", b"new")
    assert tuple(disk.steps) == STEPS
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("old", [None, b"old" * 1000], ids=["first", "replaced"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=[f"{i} {name}" for i, name in enumerate(STEPS)])
def test_a_power_cut_leaves_the_old_bytes_or_the_new_and_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, when: str, old: bytes | None
) -> None:
    path = tmp_path / "file"
    if old is not None:
        durable.write(path, old)
    with monkeypatch.context() as patch:
        Disk(patch, **{when: step})
        with pytest.raises(PowerCut):
            durable.write(path, b"new")
    replaced = step > 2 or (step == 2 and when == "after")
    assert (path.read_bytes() if path.exists() else None) == (b"new" if replaced else old)
    durable.write(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    durable.write(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_secret_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    durable.write(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_what_an_interrupted_write_left_does_not_open_a_secret_to_others(tmp_path: Path) -> None:
    (tmp_path / ".secret.part").write_bytes(b"left")
    (tmp_path / ".secret.part").chmod(0o666)
    durable.write(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_missing_folders_are_made_each_entered_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        durable.write(tmp_path / "a" / "b" / "file", b"x")
    assert disk.steps.count("fsync") == 2 + 2
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"


def test_a_log_grows_by_whole_lines(tmp_path: Path) -> None:
    durable.append_line(tmp_path / "log", "ä", max_bytes=100)
    durable.append_line(tmp_path / "log", "b", max_bytes=100)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "ä\nb\n"


def test_a_log_that_is_long_is_set_aside_and_the_one_before_is_forgotten(tmp_path: Path) -> None:
    for line in "abcde":
        durable.append_line(tmp_path / "log", line, max_bytes=4)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "e\n"
    assert (tmp_path / "log.1").read_text(encoding="utf-8") == "c\nd\n"
    assert len(list(tmp_path.iterdir())) == 2


def other(path: Path) -> "subprocess.Popen[bytes]":
    """Another process, which holds ``path`` from the moment that this returns."""
    code = "import sys; from pathlib import Path; from fleet import durable\n"
    code += "with durable.held(Path(sys.argv[1])): print(flush=True); input()"
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_one_process_holds_a_lock_at_a_time_and_its_death_lets_go(tmp_path: Path) -> None:
    process = other(tmp_path / "lock")
    with pytest.raises(BlockingIOError), durable.held(tmp_path / "lock"):
        pass
    process.kill()
    process.communicate()
    with durable.held(tmp_path / "lock"):
        pass


def test_who_waits_for_a_lock_gets_it_once_it_is_let_go(tmp_path: Path) -> None:
    process = other(tmp_path / "lock")
    got = threading.Event()

    def wait() -> None:
        with durable.held(tmp_path / "lock", wait=True):
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not got.wait(0.3)
    process.communicate(b"\n")
    waiting.join(10)
    assert got.is_set()


def test_a_line_that_waited_while_the_log_was_set_aside_goes_to_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, real = tmp_path / "log", fcntl.flock
    durable.append_line(log, "old", max_bytes=4)

    def flock(file: object, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        durable.append_line(log, "new", max_bytes=4)  # somebody else is quicker
        real(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", flock)
    durable.append_line(log, "late", max_bytes=100)
    assert log.read_text() == "new\nlate\n"
    assert (tmp_path / "log.1").read_text() == "old\n"
