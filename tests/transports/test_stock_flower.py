"""What ``docs/stock-flower.md`` says: stock SuperLink, stock SuperNodes, ``flwr run``, and no code in the FAB."""

import io
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk

from benchmarks import superlink as stock
from coordinator import flower_app
from coordinator.round import RoundState
from fleet.errors import TrustError
from fleet.signing import sha256
from node import keys
from tests.node.conftest import Toy
from tests.transports.networks import REFERENCE, SETTINGS, InProcess, Node
from tests.transports.stock_network import ENVIRONMENT, Stock, certificates, kill, running, supernode

FLEET_TOML = f"""
[task]
file = "{REFERENCE}"
[privacy]
planned_releases = 60
partition_examples = 10
[round]
rounds = 1
min_updates = 2
deadline = "4m"
[release]
every_rounds = 100
"""
pytestmark = pytest.mark.filterwarnings("ignore")  # Flower's own warnings
CLI = [sys.executable, "-c", "from flwr.cli.app import app; app()"]


def test_the_fab_holds_no_code() -> None:
    """What ``flwr run`` ships is a list of names: nothing of it can be run."""
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(stock.FAB))) as fab:
        assert {name for name in fab.namelist() if not name.startswith(".info/")} == {"pyproject.toml", "README.md"}


def test_a_nodes_keys_are_what_a_stock_supernode_reads(tmp_path: Path, toy: Toy) -> None:
    with ExitStack() as stack:
        node = InProcess(tmp_path / "coordinator", toy, stack).join("anna")
        private, public = keys.write(node.folder)
    key = node.membership().flower_key
    assert load_ssh_private_key(private.read_bytes(), None).private_numbers() == key.private_numbers()  # type: ignore[union-attr]
    assert load_ssh_public_key(public.read_bytes()) == key.public_key()
    assert private.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TrustError, match="no node of a fleet yet"):
        keys.write(tmp_path / "nobody")


@pytest.mark.slow
def test_two_stock_supernodes_and_a_stock_superlink_play_a_round(tmp_path: Path, toy: Toy) -> None:
    folder, port = tmp_path / "coordinator", stock.free_port()
    nodes = enrolled(tmp_path, toy, port)
    environment = {**ENVIRONMENT, flower_app.FOLDER: str(folder)}
    with stock.superlink(folder, certificates(tmp_path), isolation="subprocess", environment=environment) as link:
        processes = []
        try:
            for node in nodes:
                private, public = keys.write(node.folder)
                flwr(tmp_path, link, "supernode", "register", str(public), "ours")
                processes.append(supernode(node.folder, private, link))
            flwr(tmp_path, link, "run", str(stock.FAB), "ours", "--stream", "--run-config", f"port={port}")
        finally:
            for process in processes:
                kill(process)
        log = (folder / "superlink.log").read_text()
    with ExitStack() as stack:
        ended = OneRound(folder, toy, stack)
        rounds = ended.coordinator.registry.rounds
        [round_] = rounds.all()
        assert round_.state is RoundState.CLOSED, log[-3000:]
        given = {entry.payload for entry in rounds.entries(round_)}
        assert given == {sha256(node.sent(1)[2]) for node in nodes}
        assert len(given) == rounds.counted() == 2
        assert rounds.bases()[-1].number == 1
    installed = [path.suffix for home in tmp_path.rglob("apps") for path in home.rglob("*") if path.is_file()]
    assert installed
    assert ".py" not in installed


@pytest.mark.slow
def test_nothing_of_a_stock_fleet_outlives_a_test_that_fails(tmp_path: Path, toy: Toy) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_beside_a_fleet(tmp_path, toy)
    assert running(tmp_path) == []


def fail_beside_a_fleet(place: Path, toy: Toy) -> None:
    """Go wrong while a SuperLink runs, and a SuperNode with its SuperExec."""
    with ExitStack() as stack:
        network = Stock(place / "coordinator", toy, stack)
        network.connect(network.enrol("anna"))
        network.until(lambda: len(running(place)) == 3)
        raise ZeroDivisionError


class OneRound(InProcess):
    """A fleet whose plan is over after a round, and with it a run of Flower's."""

    settings = SETTINGS.changed(round={"rounds": 1})


def enrolled(place: Path, toy: Toy, port: int) -> list[Node]:
    """Two nodes that joined while the coordinator was served otherwise, at the address that it will have again."""
    with ExitStack() as stack:
        network = OneRound(place / "coordinator", toy, stack, port=port)
        nodes = [network.join(name) for name in ("anna", "ben")]
    (place / "coordinator" / "fleet.toml").write_text(FLEET_TOML)
    return nodes


def flwr(place: Path, link: stock.SuperLink, *arguments: str) -> None:
    """Flower's own command, which knows the SuperLink as ``ours``."""
    assert link.certificates
    home = place / "cli"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink.ours]\naddress = "{link.address}"\nroot-certificates = "{link.certificates.authority}"\n'
    )
    shown = subprocess.run(
        [*CLI, *arguments], env=stock.quiet(home), capture_output=True, text=True, timeout=400, cwd=place
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
