"""A simulated fleet over a folder."""

from pathlib import Path

import numpy as np
import pytest

from fleet.errors import UsageError
from fleet.task import Recording, Windows
from simulations.world import World


def test_a_world_makes_no_folder_for_a_name_that_leads_elsewhere(tmp_path: Path) -> None:
    world = object.__new__(World)
    world.folder = tmp_path / "run"
    nothing = Windows(np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
    with pytest.raises(UsageError, match="letter or digit first"):
        world._provision("../../x", Recording("p", nothing, nothing), 1000)
    assert list(tmp_path.iterdir()) == []
