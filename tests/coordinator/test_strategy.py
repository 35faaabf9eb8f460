"""The server step is Flower's own, though its memory is put away and recalled each round."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

from coordinator.strategy import ServerStep
from coordinator.vault import Vault
from fleet import flwr_compat
from fleet.errors import SettingsError
from fleet.quantization import Template
from fleet.settings import RoundSettings
from fleet.settings_check import step_length
from fleet.weights import Flat
from tests.coordinator.conftest import SETTINGS, Fleet, warm_start

SIZE, ROUNDS = 7, 5


def step(name: str, *, rate: float = 1.0, momentum: float = 0.0) -> ServerStep:
    reference = f"flwr.serverapp.strategy:{name}"
    return ServerStep(RoundSettings(server_step=reference, server_learning_rate=rate, server_momentum=momentum))


def means() -> list[Flat]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=SIZE).astype(np.float32) for _ in range(ROUNDS)]


def stock(strategy: Any, master: Flat) -> list[Flat]:
    """The masters of one strategy object that lives through all rounds, as ``Strategy.start`` drives it."""
    strategy.fraction_train = 0.0  # asks nobody: the replies are made here
    record = ArrayRecord({"weights": Array(master)})
    masters = []
    for number, mean in enumerate(means(), start=1):
        strategy.configure_train(number, record, ConfigRecord(), None)
        arrays = ArrayRecord({"weights": Array(record["weights"].numpy() + mean)})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        record, _ = strategy.aggregate_train(number, [flwr_compat.of_no_run(content, "train")])
        masters.append(record["weights"].numpy())
    return masters


def recalled(settings: RoundSettings, vault: Vault, master: Flat) -> list[Flat]:
    """The masters of a new ServerStep each round; all that lives on is in the vault."""
    memory = vault.put(np.zeros((0, SIZE), np.float32))
    masters = []
    for number, mean in enumerate(means(), start=1):
        master, new = ServerStep(settings)(number, master, mean, vault.get(memory))
        memory = vault.put(new)
        masters.append(master)
    return masters


@pytest.mark.parametrize(
    ("name", "rate", "momentum", "strategy"),
    [
        ("FedAvg", 1.0, 0.0, FedAvg()),
        ("FedAvgM", 1.0, 0.0, FedAvgM()),
        ("FedAvgM", 1.0, 0.9, FedAvgM(server_momentum=0.9)),
        ("FedAvgM", 0.5, 0.0, FedAvgM(server_learning_rate=0.5)),
        ("FedAvgM", 0.5, 0.9, FedAvgM(server_learning_rate=0.5, server_momentum=0.9)),
        ("FedAdam", 0.1, 0.9, FedAdam(eta=0.1, beta_1=0.9)),
        ("FedYogi", 0.1, 0.9, FedYogi(eta=0.1, beta_1=0.9)),
        ("FedAdagrad", 0.1, 0.0, FedAdagrad(eta=0.1)),
    ],
)
def test_five_recalled_steps_end_where_stock_flower_ends(
    name: str, rate: float, momentum: float, strategy: FedAvg, tmp_path: Path
) -> None:
    settings = RoundSettings(
        server_step=f"flwr.serverapp.strategy:{name}", server_learning_rate=rate, server_momentum=momentum
    )
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    ours, theirs = recalled(settings, Vault(tmp_path), start), stock(strategy, start)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_by_default_the_master_moves_by_the_mean() -> None:
    master, memory = ServerStep(RoundSettings())(
        1, np.ones(SIZE, np.float32), np.full(SIZE, 0.5, np.float32), np.zeros(0, np.float32)
    )
    np.testing.assert_array_equal(master, np.full(SIZE, 1.5, np.float32))
    assert memory.shape == (0, SIZE)


@pytest.mark.parametrize(
    ("name", "momentum"), [("FedAdam", 0.0), ("FedAdam", 0.9), ("FedYogi", 0.0), ("FedYogi", 0.9), ("FedAdagrad", 0.0)]
)
def test_a_step_that_adapts_is_as_long_as_check_says(name: str, momentum: float) -> None:
    settings = RoundSettings(server_step=f"flwr.serverapp.strategy:{name}", server_momentum=momentum)
    for mean in (0.5, 5.0):
        master, none = np.zeros(SIZE, np.float32), np.zeros(0, np.float32)
        moved, _ = ServerStep(settings)(1, master, np.full(SIZE, mean, np.float32), none)
        np.testing.assert_allclose(moved, step_length(settings), rtol=0.5)


def test_a_step_changes_neither_its_master_nor_its_memory() -> None:
    master, mean, memory = (np.full(SIZE, value, np.float32) for value in (1, 2, 3))
    step("FedAvgM", momentum=0.9)(2, master, mean, memory)
    assert (master[0], mean[0], memory[0]) == (1, 2, 3)


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param("flwr.serverapp.strategy:NoSuch", id="no such class"),
        pytest.param("no_such_module:FedAvg", id="no such module"),
        pytest.param("flwr.serverapp.strategy:Result", id="no strategy"),
        pytest.param("coordinator.strategy:ServerStep", id="a class of ours"),
        pytest.param("math:inf", id="no class"),
    ],
)
def test_a_server_step_outside_of_flowers_fedavg_family_is_a_wrong_setting(reference: str) -> None:
    with pytest.raises(SettingsError, match=reference):
        ServerStep(RoundSettings(server_step=reference))


def test_momentum_survives_the_coordinator(tmp_path: Path, template: Template) -> None:
    rounds = {"server_momentum": 0.5, "aggregation": "mean"}
    fleet = Fleet(tmp_path / "coordinator", template, SETTINGS.changed(round=rounds))
    step = np.full(warm_start().size, 0.25, np.float32)
    for _ in range(3):
        round_ = fleet.opened()
        for name in fleet.names:
            fleet.receive(round_, fleet.update(name, round_, step))
        fleet.settle(round_)
        fleet.close()
        fleet.open()
    master = fleet.coordinator.bases.master(fleet.bases[-1])
    moved = 0.25 * math.fsum([1, 1.5, 1.75])  # each step is the mean and half of the step before
    np.testing.assert_allclose(master - warm_start(), moved, rtol=1e-5)
