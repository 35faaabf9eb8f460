"""A small real fleet: one linear layer, nodes with real keys, and a coordinator over a folder."""

import hashlib
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.founding import found
from coordinator.requantizer import register
from coordinator.round import Round, RoundState
from coordinator.rounds import BaseRow
from fleet.messages import CODEC, Report, Update, encode, update_key
from fleet.quantization import Template
from fleet.settings import Settings
from fleet.signing import Sealed, sha256
from fleet.task import weights_of
from fleet.weights import Flat
from tests.coordinator.tiny import TASK, linear

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
SIZE = 15
LEDGER_STEP = 10  # how far an honest node's ledger is after each round


SETTINGS = Settings().changed(
    privacy={"epsilon": math.inf},
    round={"rounds": 20, "min_updates": 2, "max_staleness": 2, "server_momentum": 0.5},
    release={"every_rounds": 100, "shadow_windows": 10, "probation_windows": 2},
)


def warm_start() -> Flat:
    torch.manual_seed(0)
    return weights_of(linear())


def key_of(name: str) -> Ed25519PrivateKey:
    """The same name has the same key in every test."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def delta_of(name: str, round_: int) -> Flat:
    """What training changed on a node: the same every time it is asked, of norms around 0.4."""
    seed = hashlib.sha256(f"{name}/{round_}".encode()).digest()
    rng = np.random.default_rng(list(seed))
    return (rng.uniform(0.05, 0.15) * rng.normal(size=SIZE)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Sent:
    """A reply as it arrives at the coordinator."""

    sealed: Sealed
    payload: bytes
    codec: str = CODEC


class Fleet:
    """A coordinator over a folder, which can be opened again, and nodes that answer it honestly."""

    def __init__(
        self, folder: Path, template: Template, settings: Settings = SETTINGS, *, nodes: int = 5, now: datetime = NOW
    ) -> None:
        self.folder = folder
        self.template = template
        self.settings = settings
        self.now = now
        self.names = [f"node-{index}" for index in range(nodes)]
        self.open()
        for name in self.names:
            self.enrol(name)

    def open(self) -> None:
        """Start the coordinator's process, as after a crash."""
        self.coordinator, self.repository = found(
            self.folder,
            TASK,
            self.settings,
            register=lambda: self.template,
            warm_start=warm_start,
            clock=lambda: self.now,
        )

    def close(self) -> None:
        self.coordinator.registry.close()

    def enrol(self, name: str) -> None:
        known = self.coordinator.registry.roster.entries()
        if name not in {entry.name for entry in known}:
            self.coordinator.enrol(name, key_of(name).public_key(), 1000 + len(known))

    def fields(self, name: str, round_: Round, delta: Flat | None = None) -> Update:
        """What an honest node signs."""
        base = self.bases[round_.base]
        payload = encode(delta_of(name, round_.number) if delta is None else delta)
        return Update(
            node=name,
            task=TASK.name,
            round=round_.number,
            base=base.number,
            base_digest=base.payload,
            key=update_key(name, TASK.name, round_.number, base.payload),
            codec=CODEC,
            payload_digest=sha256(payload),
            spent_mu2=1,
            ledger_seq=LEDGER_STEP * round_.number,
            ledger_head="0" * 64,
        )

    def update(self, name: str, round_: Round, delta: Flat | None = None, *, base: int | None = None) -> Sent:
        """An honest node's answer; ``delta`` and ``base`` are its usual ones unless given."""
        if base is not None:
            round_ = replace(round_, base=base)
        delta = delta_of(name, round_.number) if delta is None else delta
        return Sent(self.fields(name, round_, delta).sealed(key_of(name)), encode(delta))

    def receive(self, round_: Round, sent: Sent, asked: str = "somebody") -> None:
        self.coordinator.receive_update(round_, asked, sent.sealed, sent.codec, sent.payload)

    def answer(self, round_: Round, *names: str) -> None:
        """The named nodes, or all, answer honestly."""
        for name in names or self.names:
            self.receive(round_, self.update(name, round_), name)

    def opened(self) -> Round:
        round_ = self.coordinator.open_round(asked=True)
        assert round_ is not None
        return round_

    def settle(self, round_: Round, *, late: bool = True) -> RoundState:
        """Settle a round, at its deadline unless told otherwise."""
        if late:
            self.now = max(self.now, round_.deadline)
        return self.coordinator.settle_round(round_)

    def play_round(self, *names: str) -> BaseRow:
        """A whole round that the named nodes, or all, answer; its base."""
        round_ = self.opened()
        self.answer(round_, *names)
        assert self.settle(round_) is RoundState.CLOSED
        return self.bases[-1]

    def report(self, name: str, won: int, lost: int, *, ledger_seq: int | None = None) -> None:
        """A node answers what the running rollout asks."""
        if ledger_seq is None:
            ledger_seq = LEDGER_STEP * len(self.coordinator.registry.rounds.all())
        asked = self.coordinator.delivery.question()
        assert asked is not None
        report = Report(
            name, TASK.name, asked.release, asked.watch, asked.quota, won, lost, ledger_seq, ledger_head="0" * 64
        )
        self.coordinator.delivery.receive(asked, name, report.sealed(key_of(name)))

    def pass_time(self, span: timedelta) -> None:
        self.now += span

    @property
    def bases(self) -> list[BaseRow]:
        return self.coordinator.registry.rounds.bases()

    @property
    def refused(self) -> list[str]:
        """Codes of all refusals on record, oldest first."""
        return [refusal.code for refusal in self.coordinator.registry.rounds.refusals()]


@pytest.fixture(scope="session")
def template() -> Template:
    return register(TASK, warm_start()).template


@pytest.fixture
def fleet(tmp_path: Path, template: Template) -> Fleet:
    """Five enrolled nodes, base 0 and release 0."""
    return Fleet(tmp_path / "coordinator", template)
