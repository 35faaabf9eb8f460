"""What ``edgefleet up`` counts and says; the fleet itself runs in ``tests/programs``."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fleet.errors import UsageError
from fleet.task import Windows
from simulations import up_command
from simulations.up import Wearer, committed
from simulations.up_command import make_ready
from simulations.up_view import UpView

RELEASES: list[dict[str, Any]] = [
    {"number": 0, "base": 0, "withdraws": None},
    {"number": 1, "base": 1, "withdraws": None},
    {"number": 2, "base": 0, "withdraws": 1},
    {"number": 3, "base": 2, "withdraws": None},
    {"number": 4, "base": 1, "withdraws": 3},
]


@pytest.mark.parametrize(
    ("release", "candidate", "counts"),
    [
        pytest.param(3, None, True, id="trained"),
        pytest.param(1, None, True, id="trained, and not the newest"),
        pytest.param(3, 3, False, id="still on probation"),
        pytest.param(0, None, False, id="release 0"),
        pytest.param(2, None, False, id="a withdrawal back to release 0"),
        pytest.param(4, None, False, id="a withdrawal"),
    ],
)
def test_a_node_has_committed_what_was_trained_and_no_withdrawal(
    release: int, candidate: int | None, counts: bool
) -> None:
    standing = [{"release": release, "candidate": candidate}, {"release": 1, "candidate": None}]
    assert committed(standing, RELEASES) == 1 + counts


@pytest.mark.parametrize(
    ("stage", "windows", "wanted"),
    [
        pytest.param(None, None, 0, id="no release on trial"),
        pytest.param("staged", None, 0, id="no model watches yet"),
        pytest.param("shadow", 0, 24, id="none yet"),
        pytest.param("shadow", 22, 2, id="some came before the model watched"),
        pytest.param("vetoed", 24, 0, id="enough"),
        pytest.param("shadow", 30, 0, id="more than enough"),
        pytest.param("probation", 1, 2, id="probation"),
        pytest.param("rolled-back", 0, 3, id="refused, and compared all the same"),
    ],
)
def test_a_wearer_gives_as_many_truths_as_the_node_still_needs(
    tmp_path: Path, stage: str | None, windows: int | None, wanted: int
) -> None:
    class Standing(Wearer):
        def status(self) -> dict[str, Any]:
            return {"stage": stage, "labelled_windows": windows}

    nothing = Windows(np.zeros((0, 6, 100), np.float32), np.zeros(0, np.int64))
    assert Standing("watch", tmp_path, "", nothing, nothing).wanted() == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("full", "is not empty", id="a folder with something in it"),
        pytest.param("full/letter.txt", "cannot be written", id="a file"),
        pytest.param("full/letter.txt/fleet", "cannot be written", id="under a file"),
        pytest.param("link", "cannot be written", id="a link to nothing"),
        pytest.param("/proc/fleet", "cannot be written", id="a folder that cannot be made"),
        pytest.param("x" * 300, "cannot be written", id="a name too long"),
    ],
)
def test_a_folder_that_cannot_be_the_fleets_is_refused_before_anything_runs(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UsageError, match=f"{said}.*; choose another --out"):
        make_ready(tmp_path / name)
    make_ready(tmp_path / "new" / "fleet")
    assert list((tmp_path / "new" / "fleet").iterdir()) == []


def test_a_folder_that_is_there_and_takes_nothing_cannot_be_the_fleets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(up_command, "TemporaryFile", full)
    with pytest.raises(UsageError, match="cannot be written: Permission denied; choose another --out"):
        make_ready(tmp_path)


def test_a_round_is_named_by_its_own_number_and_by_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    fleet: Any = SimpleNamespace(elapsed_s=3.0, wearers=[])
    with UpView(quiet=False) as view:
        for number, state in ((1, "open"), (1, "failed"), (2, "open"), (2, "open"), (2, "closed")):
            last = {"number": number, "state": state}
            view.show(fleet, {"rounds": {"last": last}, "rollout": None, "serving": 0})
    assert [line.split("s  ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "round 1 is open",
        "round 1 ended with too few updates",
        "round 2 is open",
        "round 2 is averaged",
    ]
