"""One fleet a transport, shared by the tests of a module: joining takes longer than playing a round."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.node.conftest import Toy
from tests.transports.networks import Embedded, InProcess, Network, Node, Stock

# A case of it still fails now and then (revocation): asked for by hand until it does not.
WISHED = pytest.mark.skipif("TEST_STOCK" not in os.environ, reason="TEST_STOCK=1 runs the cases over stock Flower")
TRANSPORTS = [
    pytest.param(InProcess, id="in-process"),
    pytest.param(Embedded, id="embedded"),
    pytest.param(Stock, id="stock", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore"), WISHED]),
]


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="module", params=TRANSPORTS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy: Toy) -> Iterator[Network]:
    """A fleet whose nodes are ``anna`` and ``ben``, both online."""
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
