"""A model's weights as one flat float32 vector, and the layout that says what lies where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Flat = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a model's parameters, in ``state_dict`` order.

    ``layout.flatten(layout.unflatten(flat)) == flat``.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """How many float32 values the flat vector has."""
        return sum(prod(shape) for shape in self.shapes)

    def unflatten(self, flat: Flat) -> dict[str, Flat]:
        """The parameters by name: views of ``flat``, shape ``(size,)``, float32.

        Raises:
            ValueError: ``flat`` has another length.
        """
        if flat.shape != (self.size,):
            raise ValueError(f"weights have shape {flat.shape}, the layout needs ({self.size},)")
        ends = list(accumulate(prod(shape) for shape in self.shapes))
        starts = [0, *ends][:-1]
        return {
            name: flat[start:end].reshape(shape)
            for name, shape, start, end in zip(self.names, self.shapes, starts, ends, strict=True)
        }

    def flatten(self, parameters: Mapping[str, npt.NDArray[Any]]) -> Flat:
        """One float32 vector of the named parameters.

        Raises:
            ValueError: A parameter is missing or has another shape.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in parameters or parameters[name].shape != shape:
                raise ValueError(f"parameter {name} of shape {shape} is missing or has another shape")
        parts = [np.asarray(parameters[name], dtype=np.float32).ravel() for name in self.names]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def to_json(self) -> list[list[Any]]:
        """``[[name, [dimensions]], ...]``."""
        return [[name, list(shape)] for name, shape in zip(self.names, self.shapes, strict=True)]

    @classmethod
    def from_json(cls, data: Sequence[Sequence[Any]]) -> "Layout":
        """The inverse of ``to_json``."""
        return cls(tuple(str(name) for name, _ in data), tuple(tuple(map(int, shape)) for _, shape in data))
