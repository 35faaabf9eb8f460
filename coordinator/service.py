"""The coordinator as a process: one thread decides and signs, whatever the doors let in waits for it."""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from coordinator import overview
from coordinator.access import Access
from coordinator.coordinator import Coordinator
from coordinator.reply import Longest
from coordinator.server_app import Reports, server_app
from coordinator.superlink import EmbeddedGrid, SuperLink
from fleet import flwr_compat
from fleet.errors import FleetError, LinkError, RefusedError
from fleet.events import Record
from fleet.settings import Settings
from fleet.trust.repository import Repository

if TYPE_CHECKING:
    from coordinator.flower_app import StockGrid, StockSuperLink

LOOK_S = 0.25  # between two looks at what came back
IDLE_S = 1.0
AGAIN_S = 2.0  # a node learns for seconds at least
RENEWAL_S = 3600.0  # the timestamp lives for 24 hours
PATIENCE_S = 30.0  # of the operator's commands, with a thread that signs and quantizes in between

T = TypeVar("T")


class StoppedError(FleetError):
    """The process was asked to end; the open round is on record and goes on next time."""


class Service:
    """Plays a sync window whenever one is due, and the operator's wishes between two looks at the network."""

    def __init__(
        self,
        coordinator: Coordinator,
        repository: Repository,
        superlink: "SuperLink | StockSuperLink",
        access: Access,
        settings: Settings,
        *,
        clock: Callable[[], datetime],
        record: Record,
    ) -> None:
        self._coordinator = coordinator
        self._repository = repository
        self._superlink = superlink
        self._access = access
        self._settings = settings
        self._clock = clock
        self._record = record
        self._wishes: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._stopping = False
        self._next_renewal = 0.0
        self._cut_short = False

    def run(self, *, to_the_end: bool = False) -> None:
        """Play until ``stop``, or until there is nothing left to play. What fails is recorded and tried again."""
        settings = self._settings.round
        ask_s = _between(10.0, settings.deadline.total_seconds() / 3, 120.0)
        again_s = _between(0.5, settings.deadline.total_seconds() / 20, AGAIN_S)
        grid = self._superlink.grid(wait=lambda: self._wait(LOOK_S), longest=Longest.of(self._coordinator.size))
        reports = Reports(self._coordinator, ask_s=ask_s, again_s=again_s)
        app = server_app(
            self._coordinator,
            pause=lambda: self._pause(grid, reports),
            reports=reports,
            ask_s=ask_s,
            again_s=again_s,
            slowest_s=_between(again_s, settings.deadline.total_seconds() / 40, 15.0),
        )
        with suppress(StoppedError):
            while not (to_the_end and self.is_over()):
                try:
                    self._keep_up()
                    if self._is_due():
                        app(grid, flwr_compat.context(grid.run.run_id, flwr_compat.COORDINATOR_ID))
                        if not reports.under_way:
                            grid.forget()
                    grid.stay_alive()
                except StoppedError:
                    raise
                except LinkError as error:
                    self._record("run-ended", reason=str(error))
                except Exception as error:  # noqa: BLE001 - the loop of a program: it goes on
                    self._cut_short = True
                    self._record("window-failed", error=type(error).__name__, reason=str(error))
                self._wait(IDLE_S)
        grid.end()

    def is_over(self) -> bool:
        """Whether the planned rounds are played and no rollout runs."""
        rounds, releases = self._coordinator.registry.rounds, self._coordinator.registry.releases
        played = len(rounds.all()) >= self._settings.round.rounds and rounds.current() is None
        return played and releases.running() is None

    def stop(self) -> None:
        """End ``run`` at its next look; may be called from anywhere."""
        self._stopping = True

    # the operator's wishes

    def status(self) -> dict[str, Any]:
        """All of it at a glance."""
        return overview.status(self._coordinator, self._settings, self._superlink.online(), self._clock())

    def for_devices(self) -> dict[str, Any]:
        """What a device may know of the fleet."""
        return overview.for_devices(
            self._coordinator.registry, self._settings, self._clock(), self._repository.version()
        )

    def nodes(self) -> list[dict[str, Any]]:
        """Everybody who was ever enrolled."""
        return overview.nodes(self._coordinator.registry, self._superlink.online())

    def rounds(self) -> list[dict[str, Any]]:
        """All rounds, oldest first."""
        return overview.rounds(self._coordinator.registry, self._settings)

    def releases(self) -> list[dict[str, Any]]:
        """All releases, oldest first."""
        return overview.releases(self._coordinator.registry)

    def release(self, number: int) -> dict[str, Any] | None:
        """One release with its manifest."""
        return overview.release(self._coordinator.registry, number)

    def rollout(self) -> dict[str, Any] | None:
        """The newest release and where its rollout stands."""
        newest = self._coordinator.registry.releases.newest()
        return overview.rollout(self._coordinator.registry, *newest) if newest else None

    def invite(self, name: str) -> str:
        """A one-time invitation, as it is printed."""
        return str(self._access.invite(name))

    def revoke(self, name: str) -> None:
        """Take a node out, at once."""
        self._access.revoke(name)

    def start_round(self) -> dict[str, Any]:
        """Open a round now; on record when this returns.

        Raises:
            RefusedError: ``round-open``, ``plan-spent`` or ``too-few``.
        """
        return self._in_turn(self._start_round)

    def pause_rollout(self, *, paused: bool) -> dict[str, Any]:
        """Let the running rollout stand still, or go on."""
        self._in_turn(lambda: self._coordinator.delivery.pause(paused=paused))
        return self.rollout() or {}

    def withdraw(self) -> dict[str, Any]:
        """Take the newest release back."""
        release = self._in_turn(self._coordinator.delivery.withdraw_newest)
        return {"release": release.number, "withdraws": release.withdraws, "base": release.base}

    def _start_round(self) -> dict[str, Any]:
        if current := self._coordinator.registry.rounds.current():
            raise RefusedError("round-open", f"round {current.number} is open")
        settings, registry = self._settings.round, self._coordinator.registry
        if len(registry.rounds.all()) >= settings.rounds:
            raise RefusedError("plan-spent", f"all {settings.rounds} planned rounds were played")
        opened = self._coordinator.open_round(asked=True)
        if opened is None:
            raise RefusedError(
                "too-few", f"{len(registry.roster.active())} nodes, a round needs {settings.min_updates}"
            )
        return {"round": opened.number, "base": opened.base, "deadline": opened.deadline.isoformat()}

    def _in_turn(self, wish: Callable[[], T]) -> T:
        """Let the one thread that decides do it, between two looks.

        Raises:
            LinkError: It had no time, and will not do it later: whoever asks again asks once.
        """
        done: Future[T] = Future()
        self._wishes.put((wish, done))
        try:
            return done.result(PATIENCE_S)
        except TimeoutError as error:
            if done.cancel():
                raise LinkError("the coordinator is busy: ask again") from error
            return done.result()  # it is at it

    def _wait(self, seconds: float) -> None:
        """Look away for a moment; grant a wish that comes meanwhile, and return at once then."""
        if self._stopping:
            raise StoppedError("stopping")
        try:
            wish, done = self._wishes.get(timeout=seconds)
        except queue.Empty:
            return
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(wish())
        except Exception as error:  # noqa: BLE001 - belongs to whoever wished
            self._cut_short = self._cut_short or not isinstance(error, RefusedError)
            done.set_exception(error)

    # when

    def _pause(self, grid: "EmbeddedGrid | StockGrid", reports: Reports) -> None:
        """Rollouts go on while a round is open: a round takes as long as its slowest node."""
        self._keep_up()
        reports.look(grid)
        self._coordinator.delivery.judge()
        self._wait(LOOK_S)

    def _is_due(self) -> bool:
        return self._coordinator.round_is_due() or self._coordinator.registry.releases.running() is not None

    def _keep_up(self) -> None:
        """Finish what an error cut short; sign again what would expire, even in a round that takes days."""
        if self._cut_short:
            self._coordinator.finish()
            self._cut_short = False
        if time.monotonic() >= self._next_renewal:
            self._repository.heartbeat()
            self._next_renewal = time.monotonic() + RENEWAL_S


def _between(low: float, value: float, high: float) -> float:
    return min(max(value, low), high)
