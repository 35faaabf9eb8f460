"""Models on the pooled data of the fleet: what federation and privacy are compared with."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fleet.task import Windows
from simulations.motion import Statistics

# Chosen on donors, from one wrist to the other: benchmarks/donor_tuning.py
FOREST: dict[str, Any] = {"max_features": "sqrt", "min_samples_leaf": 1}
TREES = 300
INVERSE_PENALTY = 1.0  # chosen there, too


class Central:
    """One of scikit-learn's classifiers on the same 147 features."""

    def __init__(self, classifier: Any, windows: Windows) -> None:
        self._classifier = classifier.fit(features(windows), windows.y)

    def accuracy(self, windows: Windows) -> float:
        """The share of ``windows`` whose class it names."""
        return float((self._classifier.predict(features(windows)) == windows.y).mean())


def forest(windows: Windows, seed: int, **parameters: Any) -> Central:
    """A random forest."""
    return Central(RandomForestClassifier(TREES, random_state=seed, **(parameters or FOREST)), windows)


def linear(windows: Windows, inverse_penalty: float = INVERSE_PENALTY) -> Central:
    """Logistic regression, fitted until nothing changes: the fleet's own kind of model, without a fleet's limits."""
    return Central(make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=10_000)), windows)


def features(windows: Windows) -> npt.NDArray[np.float32]:
    """``(n, 147)``."""
    with torch.no_grad():
        values: npt.NDArray[np.float32] = _statistics()(torch.from_numpy(windows.x)).numpy()
    return values


@cache
def _statistics() -> Statistics:
    return Statistics()
