"""A coordinator in a thread, for programs that are real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.admin_client import AdminClient
from coordinator.requantizer import register
from coordinator.serve import Running
from fleet.quantization import Template
from tests.coordinator.conftest import TASK, warm_start
from tests.coordinator.served import SETTINGS, served

QUIET = SETTINGS.replace("min_updates = 2", "min_updates = 9")  # no round begins by itself


@pytest.fixture(scope="session")
def template() -> Template:
    return register(TASK, warm_start()).template


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the coordinator that serves."""
    return tmp_path_factory.mktemp("served") / "coordinator"


@pytest.fixture(scope="session")
def coordinator(home: Path, template: Template) -> Iterator[Running]:
    """Serves all the while, and opens no round."""
    with served(home, template, QUIET) as running:
        yield running


@pytest.fixture
def admin(coordinator: Running, home: Path) -> AdminClient:
    """What the operator's commands use."""
    return AdminClient(home)
