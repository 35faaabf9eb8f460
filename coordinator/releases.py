"""Releases, how far their rollout got, and what nodes reported of them."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from sqlalchemy import Engine, Row, insert, select, update

from coordinator.rollout import RUNNING, Phase, RolloutState
from coordinator.tables import nodes, releases, reports
from fleet.errors import TamperedError
from fleet.messages import Report, Watch
from fleet.release import Release


class Releases:
    """The journal of the way down. A number is given once and stands for ever."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def announce(self, release: Release, state: RolloutState) -> None:
        """Give a release its number, with the state that its rollout begins in.

        Raises:
            TamperedError: The number does not follow the newest one.
        """
        with self._engine.begin() as connection:
            numbers = connection.execute(select(releases.c.number)).scalars().all()
            if release.number != max(numbers, default=-1) + 1:
                raise TamperedError(f"release {release.number} does not follow {max(numbers, default=-1)}")
            connection.execute(
                insert(releases).values(
                    number=release.number,
                    manifest=release.to_bytes(),
                    salt=state.salt,
                    phase=state.phase.value,
                    wave=state.wave,
                    since=state.since,
                )
            )

    def move(self, state: RolloutState) -> None:
        """Record that a rollout went on."""
        query = update(releases).where(releases.c.number == state.release)
        with self._engine.begin() as connection:
            values = {name: getattr(state, name) for name in ("wave", "since", "paused", "threshold")}
            connection.execute(query.values(phase=state.phase.value, **values))

    def all(self) -> list[tuple[Release, RolloutState]]:
        """Every release and where its rollout stands, oldest first."""
        with self._engine.begin() as connection:
            return [_values(row) for row in connection.execute(select(releases).order_by(releases.c.number))]

    def newest(self) -> tuple[Release, RolloutState] | None:
        """The release with the highest number."""
        return next(reversed(self.all()), None)

    def running(self) -> tuple[Release, RolloutState] | None:
        """The release that is being rolled out, if one is."""
        newest = self.newest()
        return newest if newest and newest[1].phase in RUNNING else None

    def serving(self) -> Release:
        """The newest release that the whole fleet may serve: done, and its weights were not withdrawn since.

        Where all were, it is the newest one that was done.

        Raises:
            TamperedError: There is none; release 0 is done when it is announced.
        """
        everything = self.all()
        done = [release for release, state in everything if state.phase is Phase.DONE]
        if not done:
            raise TamperedError("no release was ever done")
        return (kept(everything) or done)[-1]

    def open_to_all(self, waves: int) -> Release:
        """The newest release that every node may serve: done, or in the last of its waves."""
        found = self.serving()
        for release, state in self.all():
            if release.number > found.number and state.phase is Phase.WAVE and state.wave == waves:
                found = release
        return found

    def accept(self, report: Report) -> bool:
        """Put a report on record; False if the node reported on this release and stage before."""
        row = {"release": report.release, "watch": report.watch.value, "node": report.node}
        same = [reports.c[name] == value for name, value in row.items()]
        with self._engine.begin() as connection:
            if connection.execute(select(reports.c.node).where(*same)).one_or_none() is not None:
                return False
            connection.execute(insert(reports).values(**row, won=report.won, lost=report.lost))
        return True

    def counts(self, release: int, watch: Watch) -> dict[str, tuple[int, int]]:
        """``(won, lost)`` by node; none of a node that was revoked since."""
        query = select(reports.c.node, reports.c.won, reports.c.lost).join(nodes, nodes.c.name == reports.c.node)
        query = query.where(~nodes.c.revoked, reports.c.release == release, reports.c.watch == watch.value)
        with self._engine.begin() as connection:
            return {node: (won, lost) for node, won, lost in connection.execute(query)}


def kept(releases: Sequence[tuple[Release, RolloutState]]) -> list[Release]:
    """Of all releases, oldest first, those that were done and whose weights were not withdrawn since."""
    withdrawn = {release.payload: release.number for release, state in releases if state.phase is Phase.HALTED}
    return [
        release
        for release, state in releases
        if state.phase is Phase.DONE and release.number > withdrawn.get(release.payload, -1)
    ]


def _values(row: Row[Any]) -> tuple[Release, RolloutState]:
    phase, since = Phase(row.phase), row.since.replace(tzinfo=UTC)
    state = RolloutState(row.number, row.salt, phase, row.wave, since, row.paused, row.threshold)
    return Release.from_bytes(row.manifest), state
