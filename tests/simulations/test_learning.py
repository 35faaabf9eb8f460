"""Learning alone is the learning of the whole loop."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import Learning
from coordinator.registry import Registry
from coordinator.vault import Vault
from fleet.privacy.noise import LatticeGaussian
from fleet.quantization import Template
from simulations.scenario import Wish, scenario


@pytest.mark.slow
def test_learning_alone_ends_with_the_weights_of_edgefleet_simulate(tmp_path: Path) -> None:
    """Without noise, for there is no way to draw the same noise twice."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "fleet", "simulate", "--nodes", "5", "--rounds", "2", "--epsilon", "inf"]
    shown = subprocess.run([*command, "--out", str(run), "--format", "json"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["updates"] == 10
    registry, vault = Registry(f"sqlite:///{run / 'coordinator' / 'registry.db'}"), Vault(run / "coordinator" / "vault")
    first, *_, last = (vault.get(base.master) for base in registry.rounds.bases())
    registry.close()

    wish, settings = Wish.saved(run)
    played = scenario(wish, settings)
    assert math.isinf(settings.privacy.epsilon)
    template = Template.from_bytes((run / "coordinator" / "template.bin").read_bytes())
    learning = Learning(played.task, template, {name: seen.train for name, seen in played.fleet.items()})
    alone = learning.master(settings, first, LatticeGaussian())
    assert np.abs(last - first).max() > 0.1
    np.testing.assert_allclose(alone, last, atol=1e-5)
