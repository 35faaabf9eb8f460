"""A random forest on the pooled data of the fleet: what federation and privacy are compared with."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import RandomForestClassifier

from fleet.task import Windows
from simulations.smartwatch import Statistics

# Chosen on donors, from one wrist to the other: benchmarks/donor_tuning.py
FOREST: dict[str, Any] = {"max_features": "sqrt", "min_samples_leaf": 1}
TREES = 300


class Forest:
    """scikit-learn's random forest on the same 147 features."""

    def __init__(self, windows: Windows, seed: int, **parameters: Any) -> None:
        self._trees = RandomForestClassifier(TREES, random_state=seed, **(parameters or FOREST))
        self._trees.fit(features(windows), windows.y)

    def accuracy(self, windows: Windows) -> float:
        """The share of ``windows`` whose class the forest names."""
        return float((self._trees.predict(features(windows)) == windows.y).mean())


def features(windows: Windows) -> npt.NDArray[np.float32]:
    """``(n, 147)``."""
    with torch.no_grad():
        values: npt.NDArray[np.float32] = _statistics()(torch.from_numpy(windows.x)).numpy()
    return values


@cache
def _statistics() -> Statistics:
    return Statistics()
