"""A fleet is led by the settings that its nodes were enrolled under."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.agreement import keep_to
from fleet.errors import SettingsError, TamperedError
from fleet.quantization import Template
from fleet.settings import Settings
from fleet.task import PrivacyUnit
from tests.coordinator.conftest import SETTINGS, TASK, Fleet

ADAM = "flwr.serverapp.strategy:FedAdam"
OTHERS: list[tuple[str, str, Any]] = [
    ("privacy", "epsilon", 2.0),
    ("privacy", "delta", 1e-6),
    ("privacy", "clipping_norm", 0.1),
    ("privacy", "planned_releases", 400),
    ("privacy", "partition_examples", 50),
    ("round", "rounds", 10),
    ("round", "max_staleness", 7),
    ("round", "server_step", ADAM),
]


@pytest.mark.parametrize(("section", "name", "value"), OTHERS)
def test_a_setting_that_nodes_were_enrolled_under_cannot_be_changed(
    tmp_path: Path, section: str, name: str, value: Any
) -> None:
    record, before = tmp_path / "agreed.json", Settings()
    keep_to(record, TASK, before, enrolled=False)
    keep_to(record, TASK, before, enrolled=True)
    was = getattr(getattr(before, section), name)
    said = rf"{section}\.{name}: {value}, but .* enrolled under {was}: put that back"
    with pytest.raises(SettingsError, match=said):
        keep_to(record, TASK, before.changed(**{section: {name: value}}), enrolled=True)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("name", "other", r"task\.name: other, but"),
        ("unit", PrivacyUnit("2 s", group=4), r"task\.unit\.(name|group): "),
        ("training", replace(TASK.training, learning_rate=77.0), r"task\.training\.learning_rate: 77"),
    ],
)
def test_the_task_that_nodes_were_enrolled_for_cannot_be_changed(
    tmp_path: Path, part: str, value: Any, said: str
) -> None:
    """Its unit is half of the noise that nodes add."""
    record = tmp_path / "agreed.json"
    keep_to(record, TASK, Settings(), enrolled=False)
    keep_to(record, TASK, Settings(), enrolled=True)
    with pytest.raises(SettingsError, match=said):
        keep_to(record, replace(TASK, **{part: value}), Settings(), enrolled=True)


def test_what_only_the_coordinator_goes_by_may_be_changed(tmp_path: Path) -> None:
    record = tmp_path / "agreed.json"
    keep_to(record, TASK, Settings(), enrolled=False)
    keep_to(record, TASK, Settings().changed(round={"min_updates": 3}, release={"margin": 0.1}), enrolled=True)


def test_a_coordinator_with_nodes_does_not_start_with_another_epsilon(tmp_path: Path, template: Template) -> None:
    fleet = Fleet(tmp_path / "coordinator", template, nodes=0)
    fleet.close()
    fleet.settings = SETTINGS.changed(privacy={"epsilon": 8.0})  # nobody was enrolled under the one before
    fleet.open()
    fleet.enrol("node-0")
    fleet.close()
    fleet.settings = SETTINGS.changed(privacy={"epsilon": math.inf})
    with pytest.raises(SettingsError, match=r"privacy\.epsilon: inf, but .* under 8\.0"):
        fleet.open()
    fleet.settings = SETTINGS.changed(privacy={"epsilon": 8.0})
    fleet.open()


def test_a_fleet_without_a_record_takes_what_it_finds_and_keeps_to_it(tmp_path: Path, template: Template) -> None:
    fleet = Fleet(tmp_path / "coordinator", template)
    fleet.close()
    record = fleet.folder / "agreed.json"
    record.unlink()
    fleet.settings = SETTINGS.changed(privacy={"epsilon": 2.0})
    fleet.open()
    fleet.close()
    assert json.loads(record.read_text())["privacy.epsilon"] == 2.0
    fleet.settings = SETTINGS
    with pytest.raises(SettingsError, match="epsilon"):
        fleet.open()


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff"])
def test_a_damaged_record_is_one_line(tmp_path: Path, damage: bytes) -> None:
    record = tmp_path / "agreed.json"
    record.write_bytes(damage)
    with pytest.raises(TamperedError, match=r"agreed\.json cannot be read"):
        keep_to(record, TASK, Settings(), enrolled=True)
