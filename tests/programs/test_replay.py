"""``edgefleet node replay``: a recording as a node's sensor would feed it, and files that are no recording."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.admin_client import AdminClient
from fleet.errors import LinkError, UsageError
from node.client import Client
from node.replay import read
from node.status import status
from tests.http_server import http_server
from tests.programs.program import Program, edgefleet, only_line
from tests.programs.test_enrol import invited, joined
from tests.waiting import until

X = np.linspace(-3, 3, 20, dtype=np.float32).reshape(5, 4)
Y = np.array([0, 1, 2, 0, 1])


def npz(**arrays: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "it.npz", **arrays)  # type: ignore[arg-type]
        return folder / "it.npz"

    return write


def text(suffix: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / f"it.{suffix}").write_bytes(content)
        return folder / f"it.{suffix}"

    return write


def cut(folder: Path) -> Path:
    path = npz(x=X, y=Y)(folder)
    path.write_bytes(path.read_bytes()[:-40])
    return path


def plain_array(folder: Path) -> Path:
    with (folder / "it.npz").open("wb") as file:
        np.save(file, X)
    return folder / "it.npz"


def with_one(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    x = X.copy()
    x[3, 1] = value
    return x


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda folder: folder / "gone.npz", "No such file"),
    "a folder": (lambda folder: folder, "Is a directory"),
    "an empty file": (text("npz", b""), "is no recording"),
    "no archive": (text("npz", b"PK\x03\x04 and more"), "is no recording"),
    "an archive that is cut": (cut, "is no recording"),
    "one array": (plain_array, "is no recording"),
    "no y": (npz(x=X), "y is not a file in the archive"),
    "objects": (npz(x=np.array([{}, {}]), y=Y[:2]), "allow_pickle"),
    "words": (npz(x=X.astype(str), y=Y), "x is <U32 and y int64, which are not numbers"),
    "complex": (npz(x=X.astype(complex), y=Y), "x is complex128 and y int64"),
    "fewer labels": (npz(x=X, y=Y[:3]), "x has the shape (5, 4) and y (3,)"),
    "rows of labels": (npz(x=X, y=np.eye(5)), "x has the shape (5, 4) and y (5, 5)"),
    "one number": (npz(x=np.float32(1), y=Y), "x has the shape ()"),
    "NaN": (npz(x=with_one(np.nan), y=Y), "reading 3 has values that are not finite"),
    "too large for float32": (npz(x=X.astype(float) * 1e300, y=Y), "reading 0 has values that are not finite"),
    "a class that is NaN": (npz(x=X, y=np.array([0, 1, np.nan, 0, 1])), "reading 2 has values that are not finite"),
    "half a class": (npz(x=X, y=Y / 2), "y is not the indices of classes"),
    "a CSV with words": (text("csv", b"a,b,y\n1,two,0\n"), "could not convert string to float"),
    "a CSV with a row too short": (text("csv", b"a,b,y\n1,2,0\n1,0\n"), "is no recording"),
    "a CSV without rows": (text("csv", b"a,b,y\n"), "is no recording"),
    "bytes": (text("csv", b"\x00\xff\xfe"), "is no recording"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_no_recording_is_said_to_be_none(what: str, tmp_path: Path) -> None:
    write, said = BROKEN[what]
    path = write(tmp_path)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recording_is_the_same_in_both_formats(tmp_path: Path) -> None:
    lines = [",".join(map(str, [*x, y])) for x, y in zip(X.tolist(), Y.tolist(), strict=True)]
    table = read(text("csv", "\n".join(["a,b,c,d,y", *lines, ""]).encode())(tmp_path))
    for windows in (table, read(npz(x=X.astype(float), y=Y.astype(np.uint8))(tmp_path))):
        assert (windows.x.dtype, windows.y.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(windows.x, X)
        np.testing.assert_array_equal(windows.y, Y)


@pytest.fixture(scope="module")
def folder(coordinator: object, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An enrolled node's."""
    folder = tmp_path_factory.mktemp("replay") / "node"
    joined(folder, invited(AdminClient(home), "replayed"))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Where that node answers, alone."""
    where = f"unix:{folder / 'api.sock'}"
    with Program(folder.parent, "node", "run", "--offline", "--folder", str(folder), "--listen", where) as node:
        until(lambda: not node.runs or "answers at" in node.said)
        yield where


def test_a_good_recording_is_answered_and_its_labels_are_taken(folder: Path, address: str, tmp_path: Path) -> None:
    path = str(npz(x=X, y=Y)(tmp_path))
    command = ("node", "replay", path, "--to", address, "--rate", "1000", "--format", "json")
    outcome = json.loads(edgefleet(*command).stdout)
    assert (outcome["answers"], outcome["labelled"]) == (5, 5)
    assert 0 <= outcome["right"] <= 5
    assert "labels taken" in edgefleet(*command[:-2], "--no-labels").stdout
    until(lambda: status(folder)["answers"] == 10, seconds=10)
    assert status(folder)["examples"] == 5


@pytest.mark.parametrize(
    ("arrays", "code", "said"),
    [
        pytest.param({"x": X[:, :3], "y": Y}, 3, "has 3 values a reading, the node takes (4,)", id="other readings"),
        pytest.param({"x": X, "y": Y + 2}, 3, "is no class", id="other classes"),
        pytest.param({"x": with_one(np.inf), "y": Y}, 2, "reading 3 has values that are not finite", id="no numbers"),
    ],
)
def test_what_the_node_does_not_take_is_one_clear_line(
    address: str, tmp_path: Path, arrays: dict[str, object], code: int, said: str
) -> None:
    shown = edgefleet("node", "replay", str(npz(**arrays)(tmp_path)), "--to", address, "--rate", "1000")
    assert said in only_line(shown.stderr)
    assert (shown.returncode, shown.stdout) == (code, "")


def test_without_a_node_there_is_one_clear_line(tmp_path: Path) -> None:
    shown = edgefleet("node", "replay", str(npz(x=X, y=Y)(tmp_path)), "--to", f"unix:{tmp_path / 'gone.sock'}")
    assert "the node does not answer" in only_line(shown.stderr)
    assert shown.returncode == 5


@pytest.mark.parametrize("said", [b"{}", b"[]", b'{"models": []}', b'{"models": ["m"]}', b'{"models": 3}', b"hello"])
def test_what_is_no_node_is_said_to_be_none(said: bytes) -> None:
    with http_server(lambda _: (200, {}, said)) as port, pytest.raises(LinkError, match=r"is no node|not answer"):
        Client(f"http://127.0.0.1:{port}")
