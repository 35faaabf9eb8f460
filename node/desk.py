"""Where readings come in and answers go out: at once, whatever the disk, the network and the releases do meanwhile."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fleet.errors import TrustError
from fleet.events import Record, ignore
from fleet.task import Signature
from node.metrics import Metrics
from node.predictor import Answer, Predictor
from node.recorder import Recorder
from node.shadow import Reading


class Models(Protocol):
    """Who answers and who watches; another thread may exchange both at any moment (``node.serving.Serving``)."""

    @property
    def active(self) -> Predictor | None: ...

    @property
    def rival(self) -> Predictor | None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """The answers to one request, all from one release. ``recorded``: whether a label for them can be taken."""

    id: str
    release: int
    answers: Sequence[Answer]
    recorded: bool


class Desk:
    """Answers with whatever is active, keeps what it saw off the reply path, and takes labels by request id."""

    def __init__(
        self,
        path: Path,
        signature: Signature,
        models: Models,
        *,
        partition_size: int,
        clock: Callable[[], float] = perf_counter,
        record: Record = ignore,
    ) -> None:
        """Open the node's store at ``path`` once more, for the thread that writes.

        Args:
            partition_size: ``settings.privacy.partition_examples``, for labelled readings that are learned from.
            clock: Seconds from any beginning, for the latency of answers.
        """
        self.signature = signature
        self.metrics = Metrics()
        self._models = models
        self._clock = clock
        self._recorder = Recorder(path, signature, self.metrics, partition_size=partition_size, record=record)
        self._born, self._numbers = os.urandom(4).hex(), count(1)

    @property
    def active(self) -> Predictor | None:
        """The release that answers at this moment."""
        return self._models.active

    def answer(self, x: npt.NDArray[np.float32], request: str = "", by: Predictor | None = None) -> Reply:
        """Classify readings ``x``, float32 ``(n, *shape)``: one at a time, as the golden outputs were computed.

        Args:
            request: The client's name for them; the newest request of a name is the one that labels are for.
            by: Who answers, if the caller has looked at ``active`` already.

        Raises:
            InputError: A reading is not what the task declares; none is kept.
            TrustError: The node was never provisioned.
        """
        active, rival = by or self._models.active, self._models.rival
        if active is None:
            raise TrustError("this node has no release to answer with yet")
        begun = self._clock()
        answers = [active.answer(one) for one in x]
        self.metrics.answered(len(answers), self._clock() - begun)
        request = request or f"{self._born}-{next(self._numbers)}"
        # Between the two looks above a release may have moved. Then the reading names a pair that never stood
        # together, and no comparison will take it.
        watch = rival.release if rival else None
        recorded = self._recorder.put(request, [Reading(*pair, watch) for pair in zip(x, answers, strict=True)])
        if not recorded:
            self.metrics.lose(len(answers))
        return Reply(request, active.release, answers, recorded)

    def teach(self, request: str, labels: Sequence[int]) -> int:
        """The truth about an earlier request, a class for each of its readings; how many were new.

        A reading that was answered while a rival watched is evidence about the two, and is never learned from; one
        that nobody watched is kept for learning. ``node.shadow.Shadow`` says why.

        Raises:
            InputError: There was no such request, or these are not labels for it.
            StoreError: They could not be stored; they may be sent again.
        """
        new = self._recorder.teach(request, labels)
        self.metrics.learn(new)
        return new

    def close(self) -> None:
        """Write what waits, and let go of the store."""
        self._recorder.close()
