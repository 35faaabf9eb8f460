"""A simulated fleet over a folder."""

from pathlib import Path

import pytest

from fleet.errors import UsageError
from simulations.world import World


def test_a_world_makes_no_folder_for_a_name_that_leads_elsewhere(tmp_path: Path) -> None:
    world = object.__new__(World)
    world.folder = tmp_path / "run"
    with pytest.raises(UsageError, match="letter or digit first"):
        world._provision("../../x")
    assert list(tmp_path.iterdir()) == []
