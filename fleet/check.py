"""What would not work about a task and its settings, found and explained before anything runs."""

from collections.abc import Callable, Iterator, Sequence

from fleet.data_check import Count, check_data
from fleet.errors import MissingExtraError, TaskError
from fleet.finding import Finding, failure, said
from fleet.model_check import check_model
from fleet.settings import Settings
from fleet.settings_check import check_settings
from fleet.task import Task, weights_of
from fleet.weights import Flat

Register = Callable[[Task, Flat], Sequence[str]]
Answer = Callable[[Task], Sequence[str]]


def check(
    task: Task, settings: Settings, register: Register, taking_part: Count = len, answer: Answer = lambda _: ()
) -> list[Finding]:
    """Everything that is wrong with the task, its model, its data and the settings; empty if nothing is.

    ``register`` exports and quantizes the task as the coordinator will, and returns its warnings; it raises
    ``TaskError`` for what it refuses, and is not asked when the model already failed. ``taking_part`` is how many of
    the task's devices make up the fleet. ``answer`` says what of the artifact's answers is wrong; it is asked where
    nothing else is.
    """
    model = list(check_model(task))
    if _fit(model):
        model += _quantizer(lambda: register(task, weights_of(task.model())))
    run = check_run(task, settings, taking_part)
    if _fit([*model, *run]):
        model += _quantizer(lambda: answer(task))
    return [*model, *run]


def check_run(task: Task, settings: Settings, taking_part: Count = len) -> list[Finding]:
    """All of that but the model: what is left to check where the model is known to work."""
    return [*check_data(task, settings, taking_part), *check_settings(task, settings)]


def _fit(findings: list[Finding]) -> bool:
    return not any(finding.level == "error" for finding in findings)


def _quantizer(ask: Callable[[], Sequence[str]]) -> Iterator[Finding]:
    try:
        for message in ask():
            yield Finding("warning", "quantizer", message)
    except MissingExtraError:
        raise
    except TaskError as error:
        yield failure("quantizer", str(error))
    except Exception as error:  # noqa: BLE001 - what exports and quantizes may raise anything at a graph it never saw
        yield failure("quantizer", f"fails: {said(error)}")
