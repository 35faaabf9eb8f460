"""What ends a command is one line and a documented exit code."""

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fleet import cli
from fleet.errors import StoreError, TamperedError


def full() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def over_quota() -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def full_sqlite() -> None:
    with closing(sqlite3.connect(":memory:")) as store:
        store.execute("pragma max_page_count = 1")
        store.execute("create table t (x)")


def damaged(path: Path) -> None:
    path.write_bytes(b"x" * 9000)
    with closing(sqlite3.connect(path)) as store:
        store.execute("select * from sqlite_master")


@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [
        pytest.param(full, StoreError.exit_code, "no room is left", id="a full disk"),
        pytest.param(full_sqlite, StoreError.exit_code, "no room is left", id="a database on a full disk"),
        pytest.param(over_quota, StoreError.exit_code, "no room is left", id="no more room for this person"),
        pytest.param(lambda: damaged(Path("store.db")), TamperedError.exit_code, "is damaged", id="no database"),
    ],
)
def test_trouble_that_is_not_of_our_making_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Callable[[], None],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "app", lambda **_: trouble())
    monkeypatch.setattr(cli, "entry_points", lambda **_: [])
    assert cli.run(lambda: False) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("error", [KeyError("x"), sqlite3.OperationalError("syntax"), PermissionError(13, "no")])
def test_a_fault_of_ours_is_shown_whole(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [])
    with pytest.raises(type(error)):
        cli.run(lambda: False)


def test_trouble_that_ctrl_c_made_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: full())
    monkeypatch.setattr(cli, "entry_points", lambda **_: [])
    with pytest.raises(KeyboardInterrupt):
        cli.run(lambda: True)


def test_output_that_finds_no_room_is_one_line() -> None:
    with open("/dev/full", "w") as output:
        command = [sys.executable, "-m", "fleet", "--version"]
        shown = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert shown.returncode == StoreError.exit_code
    assert len(shown.stderr.splitlines()) == 1
    assert "no room is left" in shown.stderr
