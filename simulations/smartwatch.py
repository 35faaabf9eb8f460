"""The built-in task: which shoulder exercise is this, from two seconds of a smartwatch's motion."""

from functools import cache, partial
from typing import Literal, get_args

from torch import Tensor, nn

from fleet.errors import UsageError
from fleet.task import PrivacyUnit, Recording, Task, Training, Windows
from simulations import spar
from simulations.motion import SIGNATURE, cnn_model, feature_constants, feature_model, frame_constants

Model = Literal["features", "cnn"]

PERSONS = 10
_UNIT = PrivacyUnit("2 s window, disjoint", group=1)
# That of features was chosen on donors, on the wrist that release 0 never saw: benchmarks/donor_tuning.py. How that
# of cnn came about, and who was looked at, is in docs/accuracy.md.
_TRAINING = {"features": Training(learning_rate=30.0, examples=80), "cnn": Training(learning_rate=10.0, examples=80)}


def smartwatch(model: Model = "features", fold: int = 0) -> Task:
    """The task in which person ``fold`` is the public donor and the other nine people wear the devices.

    ``features`` trains a linear head on fixed features; ``cnn`` trains a small convolutional network.

    Raises:
        UsageError: There is no such model or fold.
        MissingExtraError: The data set is not installed.
    """
    if model not in get_args(Model):
        raise UsageError(f"model {model!r} is not known: use features or cnn")
    donor = _person(fold)
    return Task(
        name=f"smartwatch_{model}",
        model=partial(_features if model == "features" else _cnn, donor),
        signature=SIGNATURE,
        unit=_UNIT,
        training=_TRAINING[model],
        devices=partial(_devices, donor),
        donor=partial(_public, donor),
    )


def held_out(fold: int) -> str:
    """The person whose devices judge the fold and never train: the one after its donor.

    Raises:
        UsageError: There is no such fold.
    """
    _person(fold)
    return _person((fold + 1) % PERSONS)


def _person(fold: int) -> str:
    if not 0 <= fold < PERSONS:
        raise UsageError(f"fold {fold} is not known: use 0 to {PERSONS - 1}")
    return f"person{fold + 1:02d}"


def _devices(donor: str) -> dict[str, Recording]:
    return {name: seen for name, seen in spar.recordings().items() if seen.person != donor}


def _public(donor: str) -> Windows:
    """All that the donor's devices saw."""
    seen = [recording for recording in spar.recordings().values() if recording.person == donor]
    return Windows.joined(windows for recording in seen for windows in (recording.train, recording.live))


def _features(donor: str) -> nn.Sequential:
    return feature_model(*_feature_constants(donor))


def _cnn(donor: str) -> nn.Sequential:
    return cnn_model(*_frame_constants(donor))


@cache
def _feature_constants(donor: str) -> tuple[Tensor, Tensor]:
    return feature_constants(_public(donor))


@cache
def _frame_constants(donor: str) -> tuple[Tensor, Tensor]:
    return frame_constants(_public(donor))


TASK = smartwatch()
CNN_TASK = smartwatch("cnn")
