"""The model that answers: checks the reading, runs the artifact, names the class."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet.artifact import logits, open_session
from fleet.task import Signature


@dataclass(frozen=True, slots=True)
class Answer:
    """What a release says of one reading: the index of the class, and the logits ``(classes,)`` float32."""

    label: int
    logits: npt.NDArray[np.float32]
    release: int


class Predictor:
    """One release in memory. It needs no network, no store and no other thread."""

    def __init__(self, release: int, artifact: bytes, signature: Signature) -> None:
        self.release = release
        self._signature = signature
        self._session = open_session(artifact)

    def answer(self, x: npt.NDArray[np.float32]) -> Answer:
        """Classify one reading.

        Raises:
            InputError: The reading is not what the task declares.
        """
        self._signature.check(x)
        scores = logits(self._session, x[None])[0]
        return Answer(int(scores.argmax()), scores, self.release)
