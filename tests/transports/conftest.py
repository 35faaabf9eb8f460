"""One fleet a transport, shared by the tests of a module: joining takes longer than playing a round."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.node.conftest import Toy
from tests.toy_task import TASK
from tests.transports.networks import Embedded, InProcess, Network, Node
from tests.transports.stock_network import Stock

TRANSPORTS = [
    pytest.param(InProcess, id="in-process"),
    pytest.param(Embedded, id="embedded"),
    pytest.param(Stock, id="stock", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
]


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy(TASK)


@pytest.fixture(scope="module", params=TRANSPORTS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy: Toy) -> Iterator[Network]:
    """A fleet whose nodes are ``anna`` and ``ben``."""
    folder: Path = tmp_path_factory.mktemp("network") / "coordinator"
    with ExitStack() as stack:
        network: Network = request.param(folder, toy, stack)
        for name in ("anna", "ben"):
            network.join(name)
        yield network


@pytest.fixture
def anna(network: Network) -> Node:
    return network.nodes["anna"]


@pytest.fixture
def ben(network: Network) -> Node:
    return network.nodes["ben"]
