"""Accuracies as counted: so many windows right of so many."""

import math
from dataclasses import dataclass, replace

from simulations.measurement import Measurements, Own


@dataclass(frozen=True, slots=True)
class Share:
    """``right`` windows of ``of``."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """As a share of 1; 0 of nothing."""
        return self.right / self.of if self.of else 0.0

    @property
    def error(self) -> float:
        """Standard error, as if windows were independent."""
        return math.sqrt(self.value * (1 - self.value) / self.of) if self.of else 0.0

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}\u00a0%"


def by_base(measured: Measurements, precision: str, *, held_out: bool) -> dict[int, Share]:
    """How right each measured base is, on the devices held out or on the fleet's own later windows."""
    seen = [device for device in measured.seen if device.held_out is held_out]
    of = sum(device.judged for device in seen)
    rows = [row for row in measured.judged if row.precision == precision]
    return {row.base: Share(sum(row.right[device.device] for device in seen), of) for row in rows}


def lent(measured: Measurements) -> Share | None:
    """Models of single devices, each on all windows held out; None if there are none."""
    of = sum(device.judged for device in measured.seen if device.held_out)
    right = [row.right for row in measured.lent]
    return Share(sum(right), of * len(right)) if right and of else None


def own_at(measured: Measurements, *, held_out: bool) -> dict[float, list[Own]]:
    """Rows by labelled windows, infinite for all that the device has; from few to many."""
    train = {device.device: device.train for device in measured.seen if device.held_out is held_out}
    found: dict[float, list[Own]] = {}
    for row in measured.own:
        if row.device in train:
            found.setdefault(math.inf if row.labels == train[row.device] else row.labels, []).append(row)
    return dict(sorted(found.items()))


def known(measured: Measurements, rows: list[Own], which: str) -> list[Share]:
    """The shares of ``alone`` or ``personal``, one for each device where it was measured."""
    live = {device.device: device.live for device in measured.seen}
    values = [(getattr(row, which), live[row.device]) for row in rows]
    return [Share(right, of) for right, of in values if right is not None and of]


def among_equals(measured: Measurements) -> Measurements:
    """The same without devices of the fleet that did not learn alone where others did: then all shares compare."""
    rows = own_at(measured, held_out=False).get(math.inf, [])
    left_out = {row.device for row in rows if row.alone is None}
    if len(left_out) == len(rows):
        return measured
    return replace(measured, seen=tuple(device for device in measured.seen if device.device not in left_out))


def own_models(measured: Measurements, which: str) -> Share | None:
    """All devices of the fleet with ``alone`` or ``personal`` models of all their windows; None if not measured."""
    shares = known(measured, own_at(measured, held_out=False).get(math.inf, []), which)
    return Share(sum(share.right for share in shares), sum(share.of for share in shares)) if shares else None
