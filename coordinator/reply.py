"""How long the longest honest reply of a node is, and the pieces in which Flower brings it."""

from dataclasses import dataclass

CHUNK = 5 * 2**20  # Flower cuts arrays so
PARTS = 64  # of a message beside its chunks: ours have five
OVERHEAD = 2**20  # bytes of a reply beside its weights
ENTRY = 128  # bytes of one part in a table of contents, with what is around it


@dataclass(frozen=True, slots=True)
class Longest:
    """What a reply may cost: ``total`` is the bytes of all its parts."""

    total: int

    @classmethod
    def of(cls, weights: int) -> "Longest":
        """The longest reply of a task with so many weights, each four bytes."""
        return cls(4 * weights + OVERHEAD)

    @property
    def parts(self) -> int:
        """How many parts there may be."""
        return PARTS + self.total // CHUNK

    @property
    def part(self) -> int:
        """Bytes of the request that brings one part."""
        return min(self.total, CHUNK) + ENTRY * 8

    @property
    def table(self) -> int:
        """Bytes of the request that names the parts."""
        return ENTRY * self.parts + 4096
