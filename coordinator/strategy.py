"""One step of the server by Flower's own strategies, on plain arrays."""

import importlib
import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

from fleet import flwr_compat
from fleet.errors import SettingsError
from fleet.settings import RoundSettings
from fleet.weights import Flat

FAMILY = (FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad)

# Where Flower's strategies of the FedAvg family keep what they carry from round to round, and in which shape:
# FedAvgM has a list of arrays, FedOpt's children have arrays by name.
_LISTS = ("momentum_vector",)
_DICTS = ("m_t", "v_t")
_NAME = "weights"


class ServerStep:
    """Moves the master by the cohort's mean delta. It has no memory of its own: what it carries, it returns.

    Flower's ``Strategy.start`` cannot resume, so only ``aggregate_train`` is called, with one reply that is the
    master plus the mean, and ``num-examples`` 1.
    """

    def __init__(self, settings: RoundSettings) -> None:
        """Find the strategy.

        Raises:
            SettingsError: There is no such class, or it is not of the FedAvg family.
        """
        self._cls = _strategy_class(settings.server_step)
        known = inspect.signature(self._cls).parameters
        wanted = {
            "server_learning_rate": settings.server_learning_rate,
            "server_momentum": settings.server_momentum,
            "eta": settings.server_learning_rate,
            "beta_1": settings.server_momentum,
        }
        self._arguments = {name: value for name, value in wanted.items() if name in known}

    def __call__(
        self, number: int, master: Flat, mean: Flat, memory: npt.NDArray[np.float32]
    ) -> tuple[Flat, npt.NDArray[np.float32]]:
        """The next master, shape ``(size,)``, and the memory for the next call, ``(k, size)``; empty at first.

        ``number`` counts steps from 1, as Flower counts rounds: FedAdam corrects its bias by it.
        """
        strategy = self._recalled(master, memory)
        arrays, _ = strategy.aggregate_train(number, [_reply(master + mean)])
        if arrays is None:
            raise SettingsError(f"{self._cls.__name__} gave no arrays")
        return arrays.to_numpy_ndarrays()[0].astype(np.float32), self._memory(strategy, master.size)

    def _recalled(self, master: Flat, memory: npt.NDArray[np.float32]) -> FedAvg:
        make: Any = self._cls
        strategy = make(**self._arguments)
        by_name = hasattr(strategy, "m_t")  # FedOpt's children keep arrays by name, and not Flower's records
        strategy.current_arrays = {_NAME: master} if by_name else _record(master)
        rows = iter(memory.reshape(-1, master.size))
        for name in (*_LISTS, *_DICTS):
            if hasattr(strategy, name) and (row := next(rows, None)) is not None:
                setattr(strategy, name, [row.copy()] if name in _LISTS else {_NAME: row.copy()})
        result: FedAvg = strategy
        return result

    @staticmethod
    def _memory(strategy: FedAvg, size: int) -> npt.NDArray[np.float32]:
        lists = [kept[0] for name in _LISTS if (kept := getattr(strategy, name, None))]
        dicts = [kept[_NAME] for name in _DICTS if (kept := getattr(strategy, name, None))]
        return np.array([*lists, *dicts], np.float32).reshape(-1, size)


def _reply(weights: Flat) -> Message:
    """A node's reply to a training round."""
    content = RecordDict({"arrays": _record(weights), "metrics": MetricRecord({"num-examples": 1})})
    return flwr_compat.of_no_run(content, MessageType.TRAIN)


def _record(flat: Flat) -> ArrayRecord:
    return ArrayRecord({_NAME: Array(flat)})


def _strategy_class(reference: str) -> type[FedAvg]:
    module, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"round.server_step: {reference} cannot be imported: {error}") from error
    if found not in FAMILY:
        known = ", ".join(kind.__name__ for kind in FAMILY)
        raise SettingsError(f"round.server_step: {reference} makes no step of a mean; use one of {known}")
    strategy: type[FedAvg] = found
    return strategy
