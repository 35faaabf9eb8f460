"""A coordinator's folder: made once, opened ever after."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.agreement import keep_to
from coordinator.coordinator import Coordinator
from coordinator.publisher import Publisher
from fleet import durable
from fleet.errors import TamperedError, TaskError
from fleet.events import Record, ignore
from fleet.finding import said
from fleet.quantization import Template
from fleet.settings import Settings
from fleet.task import Task, layout_of
from fleet.trust.keys import Keyring
from fleet.trust.repository import Repository
from fleet.weights import Flat


def found(
    folder: Path,
    task: Task,
    settings: Settings,
    *,
    register: Callable[[], Template],
    warm_start: Callable[[], Flat],
    clock: Callable[[], datetime],
    record: Record = ignore,
) -> tuple[Coordinator, Repository]:
    """Open the coordinator of ``folder``; what is missing is made, what was interrupted is finished.

    Args:
        register: Exports and quantizes the task's graph; called once in the life of a folder.
        warm_start: The weights of release 0, shape ``(size,)`` float32; called once, too.

    Raises:
        SettingsError: Task or settings are others than those under which the folder's nodes were enrolled.
        TaskError: The task's model has other parameters than the one that the folder began with.
        TamperedError: A key, or the record of these settings, cannot be read.
        TrustError: The template cannot be read.
    """
    repository = Repository(folder / "repository", Keyring.create(folder / "keys"), clock=clock)
    repository.create()
    template = _template(folder / "template.bin", task, register)
    coordinator = Coordinator(
        folder,
        task,
        settings,
        publisher=Publisher(repository, task, template),
        size=template.layout.size,
        key=_instruction_key(folder / "keys" / "instruction.key"),
        clock=clock,
        record=record,
    )
    enrolled = bool(coordinator.registry.roster.entries())
    keep_to(folder / "agreed.json", task, settings, enrolled=enrolled)
    coordinator.begin(warm_start)
    return coordinator, repository


def _template(path: Path, task: Task, register: Callable[[], Template]) -> Template:
    if not path.exists():
        durable.write(path, register().to_bytes())
    template = Template.from_bytes(path.read_bytes())
    try:
        layout = layout_of(task.model())
    except Exception as error:  # the author's code may raise anything
        raise TaskError(f"{task.name}: the model cannot be made: {said(error)}") from error
    if template.layout != layout:
        raise TaskError(
            f"{task.name}: the model has other parameters than the one that {path.parent} began with: put that one "
            "back, or begin anew in another folder"
        )
    return template


def _instruction_key(path: Path) -> Ed25519PrivateKey:
    """The key of instructions: Ed25519, apart from TUF's keys."""
    if not path.exists():
        durable.write(path, Ed25519PrivateKey.generate().private_bytes_raw(), mode=0o600)
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except ValueError as error:
        raise TamperedError(f"{path} is no Ed25519 key") from error
