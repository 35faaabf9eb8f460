"""The scripts of the images, run as they are, over folders that stand for the volumes."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAKE = """\
#!/bin/sh
# Plays 'edgefleet' for the scripts: 'spent' lists refused invitations, 'down' stands for a broken network.
cd "$FAKE"
case "$1 $2" in
"coordinator invite")
    [ -e down ] && exit 5
    [ -e "enrolled/$3" ] && exit 7
    echo "invitation of $3 $(date +%N)"
    ;;
"node enrol")
    [ "$3" = - ] || exit 2
    invitation=$(cat)
    [ -e down ] && exit 5
    grep -qsF "$invitation" spent && exit 7
    echo "$invitation" >"$5/invitation" # --folder FOLDER
    ;;
"node run")
    echo "$4 $$" >>running
    exec sleep 60
    ;;
esac
"""


class Machine:
    """Folders that stand for the volumes, and an ``edgefleet`` that pretends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes, self.invitations = folder / "nodes", folder / "invitations"
        for made in (self.nodes, self.invitations, folder / "bin", folder / "enrolled"):
            made.mkdir()
        (folder / "bin" / "edgefleet").write_text(FAKE)
        (folder / "bin" / "edgefleet").chmod(0o755)
        self._environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE": str(folder)}

    def invite(self, count: int) -> int:
        script = ROOT / "coordinator" / "invite-nodes.sh"
        return subprocess.run(
            [script, self.folder / "state", self.invitations, str(count)], env=self._environment, check=False
        ).returncode

    @contextmanager
    def container(self) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            [ROOT / "node" / "join-and-run.sh", self.nodes, self.invitations, "task.py:TASK"],
            env=self._environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def running(self, count: int) -> list[str]:
        """The names of the nodes that were run, in order, once there are ``count``."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            lines = (self.folder / "running").read_text().splitlines() if (self.folder / "running").exists() else []
            if len(lines) >= count:
                return [Path(line.split()[0]).name for line in lines]
            time.sleep(0.05)
        raise AssertionError(f"fewer than {count} nodes run")

    def invited(self) -> set[str]:
        return {path.name for path in self.invitations.iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_invitations_are_files_that_only_their_owner_reads(machine: Machine) -> None:
    assert machine.invite(3) == 0
    assert machine.invited() == {"node-1", "node-2", "node-3"}
    assert {path.stat().st_mode & 0o777 for path in machine.invitations.iterdir()} == {0o600}


def test_invitations_are_renewed_but_not_those_of_enrolled_nodes(machine: Machine) -> None:
    machine.invite(2)
    before = {path.name: path.read_text() for path in machine.invitations.iterdir()}
    (machine.folder / "enrolled" / "node-1").touch()
    assert machine.invite(2) == 0
    assert (machine.invitations / "node-1").read_text() == before["node-1"], "it may have missed the answer"
    assert (machine.invitations / "node-2").read_text() != before["node-2"]


def test_without_a_coordinator_no_half_an_invitation_is_left(machine: Machine) -> None:
    (machine.folder / "down").touch()
    assert machine.invite(2) == 5
    assert machine.invited() == set()


def test_each_container_becomes_another_node_and_an_invitation_is_used_once(machine: Machine) -> None:
    machine.invite(3)
    with machine.container(), machine.container(), machine.container():
        assert sorted(machine.running(3)) == ["node-1", "node-2", "node-3"]
        assert machine.invited() == set()


def test_a_container_takes_over_a_node_whose_container_is_gone(machine: Machine) -> None:
    machine.invite(2)
    with machine.container():
        assert machine.running(1) == ["node-1"]
    with machine.container(), machine.container():
        assert sorted(machine.running(3)[1:]) == ["node-1", "node-2"], "the old node, and a new one"


def test_a_container_without_an_invitation_waits_for_one(machine: Machine) -> None:
    with machine.container() as container:
        time.sleep(0.3)
        assert container.poll() is None
        machine.invite(1)
        assert machine.running(1) == ["node-1"]


def test_a_refused_invitation_is_dropped_and_the_next_one_tried(machine: Machine) -> None:
    machine.invite(2)
    (machine.folder / "spent").write_text((machine.invitations / "node-1").read_text())
    with machine.container():
        assert machine.running(1) == ["node-2"]
    assert machine.invited() == set()


def test_an_invitation_is_kept_when_the_network_fails(machine: Machine) -> None:
    machine.invite(1)
    (machine.folder / "down").touch()
    with machine.container() as container:
        assert container.wait(20) == 5, "the container is started again by its restart policy"
    (machine.folder / "down").unlink()
    assert machine.invited() == {"node-1"}
    with machine.container():
        assert machine.running(1) == ["node-1"]
