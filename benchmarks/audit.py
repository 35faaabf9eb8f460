"""What a fleet's folder must say of itself at any moment, and after its last round: looked up in its files."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.kills import Witness
from coordinator.aggregation import Entry, screened_mean
from coordinator.strategy import ServerStep
from coordinator.vault import Vault
from fleet.errors import FleetError
from fleet.messages import decode
from fleet.release import Base, base_path
from fleet.settings import load
from fleet.signing import sha256
from fleet.weights import Flat
from node.installer import FolderFetcher, Installer
from node.slots import Slots

LISTED = 40  # bases; the shelf lists 48


class Floors:
    """What a node has seen, and never forgets."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def read(self) -> dict[str, int]:
        """The highest numbers."""
        return dict(self._seen)

    def raise_to(self, seen: Mapping[str, int]) -> None:
        """They never fall."""
        self._seen.update({name: max(value, self._seen.get(name, 0)) for name, value in seen.items()})


class Auditor:
    """Looks at a fleet again and again, remembers what was acknowledged, and says in words what was broken."""

    def __init__(self, folder: Path) -> None:
        """``folder`` holds ``coordinator/`` and ``nodes/NAME/``."""
        self._folder = folder
        self._registry = folder / "coordinator" / "registry.db"
        self._witness = Witness()
        self._acknowledged: dict[str, str] = {}
        self._bound: dict[tuple[str, int], str] = {}
        root = (folder / "coordinator" / "repository" / "metadata" / "1.root.json").read_bytes()
        fetcher = FolderFetcher(folder / "coordinator" / "repository")
        self._shelf = Installer(folder / "auditor", root, fetcher, Floors(), clock=lambda: datetime.now(UTC))

    def look(self) -> list[str]:
        """Every promise that is broken now; the fleet may be running or lie dead."""
        broken = self._witness.examine(self._folder)
        updates = {key: payload for key, payload, _ in self._rows('select key, payload, aggregate from "update"')}
        broken += [
            f"update {key[:8]} was acknowledged and is gone or another"
            for key, payload in self._acknowledged.items()
            if updates.get(key) != payload
        ]
        self._acknowledged |= updates
        for node in sorted(self._folder.glob("nodes/*/node.db")):
            broken += self._outbox(node)
        try:
            self._shelf.refresh()
        except FleetError as error:
            broken.append(f"a node would refuse the shelf: {error}")
        return broken

    def account(self) -> tuple[list[str], dict[str, int]]:
        """After the last round: every promise that is broken, and how much there was to break."""
        broken = self.look()
        rounds = dict(self._rows("select number, state from round"))
        updates = self._rows('select key, payload, aggregate, norm, round, node, base from "update" order by key')
        bases = {row[0]: row[1:] for row in self._rows("select number, round, payload, master, memory from base")}
        for round_, state in rounds.items():
            of_round = [row for row in updates if row[4] == round_]
            counted = [row for row in of_round if row[2] is not None]
            if state == "closed" and len(counted) != len(of_round):
                broken.append(f"round {round_} closed without {len(of_round) - len(counted)} of its updates")
            if state == "failed" and counted:
                broken.append(f"round {round_} failed and counts {len(counted)} updates")
        broken += [
            f"base {number}: {fault}" for number in bases if number for fault in self._base(number, bases, updates)
        ]
        broken += self._active()
        states = list(rounds.values())
        found = {
            "rounds": states.count("closed"),
            "failed_rounds": states.count("failed"),
            "updates": len(updates),
            "releases": self._rows("select count(*) from release")[0][0],
            "refusals": self._rows("select count(*) from refusal")[0][0],
        }
        return broken, found

    def _base(self, number: int, bases: dict[int, tuple], updates: list[tuple]) -> list[str]:  # type: ignore[type-arg]
        """The step that the nodes' own copies of the counted updates make of the base before it, bit for bit."""
        round_, payload, master, memory = bases[number]
        counted = [row for row in updates if row[2] == number]
        if not counted or any(row[4] != round_ for row in counted):
            return ["it counts no updates, or those of another round"]
        vault = Vault(self._folder / "coordinator" / "vault")
        before = vault.get(bases[number - 1][2])
        try:
            deltas = {row[1]: self._sent(row[5], row[4], before.size) for row in counted}
        except LookupError as error:
            return [str(error)]
        if faults := [row[5] for row in counted if sha256(deltas[row[1]].astype("<f4").tobytes()) != row[1]]:
            return [f"the update of {name} is not what it sent" for name in faults]
        asked = dict(self._rows("select number, base from round"))[round_]
        entries = [Entry(row[0], row[1], row[3], asked - row[6]) for row in counted]
        step = ServerStep(load(self._folder / "coordinator" / "fleet.toml", {}).round)
        mean = screened_mean(entries, deltas.__getitem__)
        stepped, remembered = step(number, before, mean, vault.get(bases[number - 1][3]))
        faults = []
        if sha256(stepped.astype("<f4").tobytes()) != master or sha256(remembered.astype("<f4").tobytes()) != memory:
            faults.append("it is not the step of its updates")
        if number > max(bases) - LISTED and self._signed(number) != payload:
            faults.append("what is signed is not what is on record")
        return faults

    def _sent(self, node: str, round_: int, size: int) -> Flat:
        query = "select payload from session where round = ?"
        rows = _read(self._folder / "nodes" / node / "node.db", query, round_)
        if not rows:
            raise LookupError(f"{node} never answered round {round_}")
        return decode(rows[0][0], size)

    def _signed(self, number: int) -> str:
        """The digest of the weights that nodes can verify and train from."""
        manifest, weights = (self._shelf.fetch(base_path(number, name)) for name in ("manifest.json", "weights.bin"))
        if manifest is None or weights is None or Base.from_bytes(manifest).payload != sha256(weights):
            return "nothing"
        return sha256(weights)

    def _outbox(self, store: Path) -> list[str]:
        """A session is bound to one round for ever, and its bytes are the same for ever."""
        name, broken = store.parent.name, []
        query = "select round, payload, body, signature from session where round is not null"
        for round_, *parts in _read(store, query):
            digest = sha256(b"".join(parts))
            if self._bound.setdefault((name, round_), digest) != digest:
                broken.append(f"{name} answered round {round_} twice, and not with the same")
        here = {round_ for round_, *_ in _read(store, query)}
        gone = [round_ for other, round_ in self._bound if other == name and round_ not in here]
        return broken + [f"{name} forgot its answer to round {round_}" for round_ in gone]

    def _active(self) -> list[str]:
        """Every node has a whole release to answer with, and it is what was signed under its number."""
        broken = []
        manifests = dict(self._rows("select number, manifest from release"))
        for folder in sorted(self._folder.glob("nodes/*")):
            slots = Slots(folder / "slots")
            pointer = slots.pointer()
            if pointer is None or not slots.is_whole(pointer.active):
                broken.append(f"{folder.name} has nothing whole to answer with")
            elif slots.release(pointer.active).to_bytes() != manifests[pointer.active]:
                broken.append(f"{folder.name} answers with another release {pointer.active}")
        return broken

    def _rows(self, query: str) -> list[tuple]:  # type: ignore[type-arg]
        return _read(self._registry, query)


def _read(path: Path, query: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
    with closing(sqlite3.connect(path, timeout=30)) as store:
        return store.execute(query, values).fetchall()
