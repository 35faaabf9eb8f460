"""What becomes of a release that this device could not load: it is refused, or tried again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.errors import StoreError, TrustError
from node import admission
from node.admission import admit
from tests.node.conftest import Toy


def admitted(toy: Toy, folder: Path) -> None:
    release, artifact, golden = toy.made(1)
    (folder / "artifact.onnx").write_bytes(artifact)
    admit(folder / "artifact.onnx", release, golden, toy.signature.shape)


def child(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Let ``script`` play the child that loads the artifact."""
    (folder / "child").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "child").chmod(0o755)
    monkeypatch.setattr(admission.sys, "executable", str(folder / "child"))


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param("kill -KILL $$", StoreError, id="killed, as by a device without memory"),
        pytest.param("kill -TERM $$", StoreError, id="ended, as by a device that shuts down"),
        pytest.param("kill -INT $$", StoreError, id="interrupted"),
        pytest.param("kill -HUP $$", StoreError, id="its terminal closed"),
        pytest.param("exec sleep 60", StoreError, id="too slow"),
        pytest.param("kill -XCPU $$", TrustError, id="computes without end"),
        pytest.param("exit 1", TrustError, id="does not load"),
    ],
)
def test_only_what_the_release_itself_did_is_held_against_it(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(admission, "TIMEOUT_S", 0.5)
    child(monkeypatch, tmp_path, script)
    with pytest.raises(error):
        admitted(toy, tmp_path)


@pytest.mark.parametrize(
    ("work", "end"),
    [
        pytest.param("sum(iter(int, 1))", f"exit -{signal.SIGXCPU}", id="time"),
        pytest.param("bytes(admission.MEMORY_BYTES)", "MemoryError", id="memory"),
    ],
)
def test_a_computation_without_end_ends_by_its_limit_and_not_as_that_of_a_device_without_room(
    tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch, work: str, end: str
) -> None:
    code = f"from node import admission; admission.CPU_SECONDS = 1; admission._golden_digest = lambda *_: {work}"
    child(monkeypatch, tmp_path, f"exec {admission.sys.executable} -c '{code}\nadmission._main()' order")
    monkeypatch.setattr(admission, "TIMEOUT_S", 20)
    with pytest.raises(TrustError, match=f"does not load: {end}"):
        admitted(toy, tmp_path)


@pytest.mark.parametrize(
    ("device", "kept"),
    [
        pytest.param("-v 3000000", ("AS", 3_071_999_999, 3_072_000_000), id="memory, for good"),
        pytest.param("-S -v 3000000", ("AS", 3_072_000_000, -1), id="memory"),
        pytest.param("-t 2", ("CPU", 1, 2), id="time, which would end it like a device without room"),
        pytest.param("-t unlimited", ("CPU", admission.CPU_SECONDS, -1), id="none"),
    ],
)
def test_a_device_whose_own_limits_are_lower_keeps_them(device: str, kept: tuple[str, int, int]) -> None:
    what, *limits = kept
    most = admission.MEMORY_BYTES if what == "AS" else admission.CPU_SECONDS
    code = f"from node import admission as a; r = a.resource; a._limit(r.RLIMIT_{what}, {most}); "
    code += f"print(*r.getrlimit(r.RLIMIT_{what}))"
    shell = f"ulimit {device}; exec {sys.executable} -c '{code}'"
    found = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert [int(limit) for limit in found.split()] == limits
