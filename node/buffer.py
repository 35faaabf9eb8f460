"""What the node may learn from: labelled examples, split into partitions in order of arrival."""

import sqlite3
from collections.abc import Sequence

import numpy as np

from fleet.task import Signature, Windows
from node.store import transaction


class Buffer:
    """A durable store of examples. An example is in exactly one partition, for ever."""

    def __init__(self, store: sqlite3.Connection, signature: Signature, *, partition_size: int) -> None:
        """``partition_size`` is a public constant: how many examples one privacy budget covers."""
        self._store = store
        self._signature = signature
        self._partition_size = partition_size

    def keep(self, windows: Windows) -> None:
        """Append ``windows``; each goes to the partition that its place in the order of arrival says.

        Raises:
            InputError: A window or a label is not what the task declares; nothing is kept.
        """
        for x, y in zip(windows.x, windows.y, strict=True):
            self._signature.check(x)
            self._signature.check_label(int(y))
        with transaction(self._store):
            self.append([(x.tobytes(), int(y)) for x, y in zip(windows.x, windows.y, strict=True)])

    def append(self, examples: Sequence[tuple[bytes, int]]) -> None:
        """``keep`` for checked examples, inside a transaction of the caller: float32 bytes and the class."""
        start = len(self)
        rows = [(start + i, (start + i) // self._partition_size, x, y) for i, (x, y) in enumerate(examples)]
        self._store.executemany("insert into example values (?, ?, ?, ?)", rows)

    def __len__(self) -> int:
        return int(self._store.execute("select coalesce(max(seq) + 1, 0) from example").fetchone()[0])

    def partitions(self) -> list[int]:
        """Numbers of the partitions, oldest first."""
        return [row[0] for row in self._store.execute("select distinct partition from example order by partition")]

    def count(self, partition: int) -> int:
        """How many examples a partition has; they are the same for as long as it has as many."""
        query = "select count(*) from example where partition = ?"
        return int(self._store.execute(query, (partition,)).fetchone()[0])

    def is_full(self, partition: int) -> bool:
        """Whether no further example will go to a partition."""
        return len(self) >= (partition + 1) * self._partition_size

    def examples(self, partition: int) -> Windows:
        """All examples of one partition, in order of arrival."""
        query = "select x, y from example where partition = ? order by seq"
        rows = self._store.execute(query, (partition,)).fetchall()
        x = np.array([np.frombuffer(row[0], np.float32) for row in rows], np.float32)
        return Windows(x.reshape(-1, *self._signature.shape), np.array([row[1] for row in rows], np.int64))
