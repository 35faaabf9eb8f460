"""From a folder to a running coordinator: founds or opens it, opens its two doors, and plays until it is stopped."""

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.certificates import fingerprint
from coordinator.flower_database import set_aside_if_damaged
from coordinator.founding import found
from fleet import durable, task
from fleet.errors import TaskError, UsageError
from fleet.events import EventLog, Record, sparing
from fleet.settings import Settings, load
from fleet.task import Task, weights_of

if TYPE_CHECKING:
    from coordinator.flower_app import StockSuperLink
    from coordinator.service import Service

CONFIG = "fleet.toml"
ADMIN = "admin.json"
ADMIN_TOKEN = "admin.token"  # noqa: S105 - a file's name
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person asked for on the command line.

    Attributes:
        config: Settings, by default ``fleet.toml`` in the folder.
        task: Where the task is, instead of ``[task] file``.
        url: How devices reach the public listener, if not by its own address.
        certificate: Files of the certificate chain and of its key, for TLS.
        authority: The certificate that devices should pin, if no public authority vouches for ours.
    """

    folder: Path
    config: Path | None = None
    task: str = ""
    host: str = "127.0.0.1"
    port: int = 8443
    admin_port: int = 0
    url: str = ""
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A coordinator whose doors are open. ``run`` plays until ``stop`` is called, from any thread."""

    url: str
    admin_url: str
    run: Callable[[], None]
    stop: Callable[[], None]


@contextmanager
def serving(plan: Plan, stock: "StockSuperLink | None" = None) -> Iterator[Running]:
    """Open the coordinator of a folder, this process alone; everything is closed on leaving.

    Args:
        stock: The SuperLink that carries Flower's messages, if it is not one inside this process; then ``run`` ends
            when there is nothing left to play.

    Raises:
        UsageError: The folder, the settings, the task, an address or a certificate cannot be used.
    """
    settings, the_task = _wanted(plan)
    authority = _authority(plan)
    with ExitStack() as stack:
        stack.enter_context(_owned(plan.folder))
        if stock is None:
            os.environ["FLWR_HOME"] = str(plan.folder / "flower")  # read when Flower is imported, below
        from coordinator.api.listener import Certificate, Listener, raised, room

        certificate = Certificate(plan.certificate, plan.key) if plan.certificate and plan.key else None
        public = Listener(plan.host, plan.port, certificate, most=room(raised()))
        stack.callback(public.close)
        admin = Listener("127.0.0.1", plan.admin_port)
        stack.callback(admin.close)
        url = plan.url or f"{public.scheme}://{_reachable(public.host)}:{public.port}"
        doors = _opened(plan.folder, the_task, settings, url, authority, stock, stack)
        stack.enter_context(public.serving(doors.public))
        stack.enter_context(admin.serving(doors.admin))
        admin_url = f"http://127.0.0.1:{admin.port}"
        fields = {"url": admin_url, "token": doors.token, "public": url, "pid": os.getpid()}
        durable.write(plan.folder / ADMIN, json.dumps(fields).encode(), mode=0o600)
        doors.record("serving", url=url, admin=admin_url)
        run = partial(doors.service.run, to_the_end=stock is not None)
        yield Running(url, admin_url, run, doors.service.stop)
        doors.record("stopped")


@dataclass(frozen=True, slots=True)
class _Doors:
    """An open coordinator and the applications in front of it."""

    service: "Service"
    public: Any
    admin: Any
    token: str
    record: Record


def _opened(
    folder: Path,
    the_task: Task,
    settings: Settings,
    url: str,
    authority: str,
    stock: "StockSuperLink | None",
    stack: ExitStack,
) -> _Doors:
    from coordinator.access import Access, Address
    from coordinator.api.admin import admin_app
    from coordinator.api.device import device_app
    from coordinator.api.gate import Gate, Limits
    from coordinator.api.problems import Faultless
    from coordinator.reply import Longest
    from coordinator.service import Service
    from coordinator.superlink import SuperLink, own_replies
    from coordinator.tokens import Tokens

    record = EventLog(folder / "events.jsonl", _now).record("coordinator")
    coordinator, repository = found(
        folder,
        the_task,
        settings,
        register=lambda: _template(the_task),
        warm_start=lambda: _warm_start(the_task),
        clock=_now,
        record=record,
    )
    stack.callback(coordinator.registry.close)
    set_aside_if_damaged(folder / "superlink.db", record)
    superlink = stock or SuperLink(folder / "superlink.db")
    address = Address(
        url=url,
        authority=authority,
        root=repository.first_root_bytes(),
        task=the_task,
        reference=settings.task.file,
        settings=settings.changed(task={"file": ""}),
    )
    tokens = Tokens(_token_key(folder / "keys" / "token.key"))
    access = Access(coordinator, superlink, tokens, address, clock=_now, record=record)
    service = Service(coordinator, repository, superlink, access, settings, clock=_now, record=record)
    device = device_app(access, repository.folder, status=service.for_devices, clock=_now, record=sparing(record))
    token = _admin_token(folder / ADMIN_TOKEN)
    admin = admin_app(service, token, clock=_now, record=record)
    limits = Limits(Longest.of(coordinator.size))
    spared = sparing(record)
    gate = Gate(superlink.app, device, superlink.knows, own_replies, limits, record=spared)
    return _Doors(service, Faultless(gate, spared), admin, token, record)


def _authority(plan: Plan) -> str:
    """The fingerprint of the certificate that devices pin; empty if there is none of ours.

    Raises:
        UsageError: It cannot be read.
    """
    if plan.authority is None:
        return ""
    try:
        return fingerprint(plan.authority.read_bytes())
    except OSError as error:
        raise UsageError(f"{plan.authority}: {error.strerror}") from error


def _wanted(plan: Plan) -> tuple[Settings, Task]:
    """Settings and task; a path of the task is relative to where the settings are."""
    config = plan.config or plan.folder / CONFIG
    if (plan.certificate is None) != (plan.key is None):
        raise UsageError("--certificate and --key go together")
    if not config.exists() and (plan.config or not plan.task):
        raise UsageError(f"{config} is not there: write one ('edgefleet init' makes an example) or name a --task")
    settings = load(config if config.exists() else None)
    reference = plan.task or settings.task.file
    if not reference:
        raise TaskError("no task: set [task] file in fleet.toml, or --task package.module:NAME")
    where = Path.cwd() if plan.task else config.parent
    return replace(settings, task=replace(settings.task, file=reference)), task.load(reference, where)


def _template(the_task: Task) -> Any:
    from coordinator.requantizer import register

    return register(the_task, weights_of(the_task.model())).template


def _warm_start(the_task: Task) -> Any:
    from coordinator.warm_start import warm_start

    return warm_start(the_task, seed=0)


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the folder: one process serves it at a time."""
    with ExitStack() as stack:
        try:
            durable.make_folder(folder)
            stack.enter_context(durable.held(folder / "serve.lock"))
        except BlockingIOError as error:
            raise UsageError(f"{folder} is being served by another process") from error
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}") from error
        yield


def _token_key(path: Path) -> Ed25519PrivateKey:
    """The key of tokens: it says nothing to anybody but ourselves."""
    if not path.exists():
        durable.write(path, Ed25519PrivateKey.generate().private_bytes_raw(), mode=0o600)
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is no key: remove it, and tokens are made anew") from error


def _admin_token(path: Path) -> str:
    if not path.exists():
        durable.write(path, secrets.token_urlsafe(32).encode(), mode=0o600)
    return path.read_text(encoding="ascii").strip()


def _reachable(host: str) -> str:
    name = socket.getfqdn() if host in ANYWHERE else host
    return f"[{name}]" if ":" in name else name


def _now() -> datetime:
    return datetime.now(UTC)
