"""The bases that nodes train from: float32 masters in the vault, their signed int8 on the shelf."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from coordinator.publisher import Publisher
from coordinator.registry import Registry
from coordinator.rounds import BaseRow
from coordinator.vault import Vault
from fleet.weights import Flat


class Bases:
    """Every base has a master, and is published under a number of its own."""

    def __init__(self, registry: Registry, vault: Vault, publisher: Publisher) -> None:
        self._rounds = registry.rounds
        self._vault = vault
        self._publisher = publisher

    def begin(self, warm_start: Callable[[], Flat]) -> None:
        """Make base 0 of a warm start ``(n,)``, unless there is one."""
        if not self._rounds.bases():
            self._found(warm_start())
        self.finish()

    def finish(self) -> None:
        """Publish what a crash or an error left unpublished."""
        for base in self._rounds.bases():
            if not base.published:
                self.publish(base)

    def _found(self, weights: Flat) -> None:
        memory = self._vault.put(np.zeros((0, len(weights)), np.float32))
        row = BaseRow(0, 0, self._publisher.payload_digest(weights), self._vault.put(weights), memory, published=False)
        self._rounds.add_bases(row)

    def __getitem__(self, number: int) -> BaseRow:
        return self._rounds.bases()[number]

    def newest(self) -> BaseRow:
        """The base with the highest number."""
        return self[-1]

    def master(self, base: BaseRow) -> Flat:
        """The float32 weights ``(n,)`` that a base was quantized from."""
        return self._vault.get(base.master)

    def memory(self, base: BaseRow) -> Flat:
        """What the server's step remembers with a base, ``(rows, n)``."""
        return self._vault.get(base.memory)

    def next(self, round_: int, master: Flat, memory: Flat) -> BaseRow:
        """The base that a round made; not in the registry yet.

        Raises:
            ValueError: It cannot be quantized.
        """
        number, payload = self.newest().number + 1, self._publisher.payload_digest(master)
        return BaseRow(number, round_, payload, self._vault.put(master), self._vault.put(memory), published=False)

    def bring(self, weights: Flat) -> BaseRow:
        """A base of weights ``(n,)`` that no round made; training goes on from the one before, numbered after it.

        Raises:
            ValueError: They cannot be quantized.
        """
        last = self.newest()
        payload, master = self._publisher.payload_digest(weights), self._vault.put(weights)
        brought = replace(last, number=last.number + 1, round=0, payload=payload, master=master, published=False)
        on = replace(last, number=last.number + 2, round=0, published=False)
        self._rounds.add_bases(brought, on)
        for base in (brought, on):
            self.publish(base)
        return brought

    def publish(self, base: BaseRow) -> None:
        """Sign it for the shelf; again, if interrupted, to the same bytes."""
        self._publisher.base(base.number, base.round, self.master(base))
        self._rounds.mark_published(base.number)
