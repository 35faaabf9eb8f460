"""What ``fleet.toml``, the environment and flags decide, read once into one frozen value."""

import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fleet.errors import SettingsError
from fleet.privacy.gaussian import Budget

ENVIRONMENT_PREFIX = "EDGEFLEET_"
FOLDERS = {"EDGEFLEET_COORDINATOR", "EDGEFLEET_NODE"}  # no settings: whose apps a stock Flower runs
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Where the task is: ``file`` is ``path.py:NAME``, relative to ``fleet.toml``."""

    file: str = ""


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What one unit's presence may cost. ``epsilon`` infinite means: no noise and no promise."""

    mode: str = "example"
    epsilon: float = 8.0
    delta: float = 1e-5
    clipping_norm: float = 0.05
    planned_releases: int = 200
    partition_examples: int = 1000

    def __post_init__(self) -> None:
        if self.mode != "example":
            raise SettingsError(f"privacy.mode: {self.mode!r} is not supported, use 'example'")
        if not self.epsilon > 0:
            raise SettingsError(f"privacy.epsilon: {self.epsilon} must be above 0 (inf for no privacy)")
        if not 0 < self.delta < 1:
            raise SettingsError(f"privacy.delta: {self.delta} must lie between 0 and 1")
        if not 1e-6 <= self.clipping_norm <= 1e6:  # weights are float32, and have to survive steps of this length
            raise SettingsError(f"privacy.clipping_norm: {self.clipping_norm} must lie between 1e-6 and 1e6")
        if self.planned_releases < 1 or self.partition_examples < 1:
            raise SettingsError("privacy: planned_releases and partition_examples must be 1 or more")

    def budget(self, group: int) -> Budget:
        """What a partition may cost, where one unit lies in up to ``group`` examples."""
        return Budget(self.epsilon, self.delta, group)


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """When updates are asked for and how they become one step of the master."""

    every: timedelta = timedelta(hours=1)
    rounds: int = 20
    min_updates: int = 8
    deadline: timedelta = timedelta(minutes=10)
    max_staleness: int = 3
    aggregation: str = "screened-mean"
    server_step: str = "flwr.serverapp.strategy:FedAvgM"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.every <= timedelta(0) or self.deadline <= timedelta(0):
            raise SettingsError("round.every, round.deadline: must be positive")
        if self.rounds < 1:
            raise SettingsError(f"round.rounds: {self.rounds} must be 1 or more")
        if self.min_updates < 2:
            raise SettingsError(f"round.min_updates: a mean of {self.min_updates} hides nobody, use 2 or more")
        if self.max_staleness < 0:
            raise SettingsError(f"round.max_staleness: {self.max_staleness} must be 0 or more")
        if self.aggregation not in {"screened-mean", "mean"}:
            raise SettingsError(f"round.aggregation: {self.aggregation!r} is not known, use screened-mean or mean")
        if not re.fullmatch(r"[\w.]+:\w+", self.server_step):
            raise SettingsError(f"round.server_step: {self.server_step!r} must look like module:Class")
        if not 0 < self.server_learning_rate < math.inf or not 0 <= self.server_momentum < 1:
            raise SettingsError("round: server_learning_rate must be positive, server_momentum in [0, 1)")


@dataclass(frozen=True, slots=True)
class ReleaseSettings:
    """When a base is offered for serving, and what evidence opens each wave."""

    every_rounds: int = 4
    waves: tuple[float, ...] = (0.05, 0.25, 1.0)
    margin: float = 0.05
    alpha: float = 0.05
    shadow_windows: int = 8
    probation_windows: int = 20
    patience: timedelta = timedelta(hours=12)
    wave_quorum: float = 0.75

    def __post_init__(self) -> None:
        if self.every_rounds < 1:
            raise SettingsError(f"release.every_rounds: {self.every_rounds} must be 1 or more")
        growing = all(a < b for a, b in zip(self.waves, self.waves[1:], strict=False))
        if not self.waves or not growing or self.waves[0] <= 0 or self.waves[-1] != 1.0:
            raise SettingsError(f"release.waves: {list(self.waves)} must grow from above 0 to 1.0")
        if not 0 < self.margin < 1 or not 0 < self.alpha < 0.5:
            raise SettingsError("release: margin must lie in (0, 1) and alpha in (0, 0.5)")
        if not 0 < self.wave_quorum <= 1:
            raise SettingsError(f"release.wave_quorum: {self.wave_quorum} must lie in (0, 1]")
        if self.shadow_windows < 1 or self.probation_windows < 1:
            raise SettingsError("release: shadow_windows and probation_windows must be 1 or more")

    def quorum(self, exposed: int) -> int:
        """How many reports are a quorum of a wave of so many nodes."""
        return max(1, math.ceil(self.wave_quorum * exposed - 1e-9))  # 0.55 * 20 is a little over 11


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, one section a part of the loop."""

    task: TaskSettings = field(default_factory=TaskSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    round: RoundSettings = field(default_factory=RoundSettings)
    release: ReleaseSettings = field(default_factory=ReleaseSettings)

    def __post_init__(self) -> None:
        if self.round.rounds > self.privacy.planned_releases:
            raise SettingsError(
                f"round.rounds: {self.round.rounds} rounds, but privacy.planned_releases is "
                f"{self.privacy.planned_releases}; every round needs at least one"
            )

    @property
    def session_releases(self) -> int:
        """Private releases that a node makes for one round."""
        return self.privacy.planned_releases // self.round.rounds

    def changed(self, **sections: Mapping[str, Any]) -> "Settings":
        """These settings with some values replaced: ``settings.changed(round={"rounds": 5})``."""
        new = {name: replace(getattr(self, name), **dict(values)) for name, values in sections.items()}
        return replace(self, **new)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The sections as they would stand in ``fleet.toml``; ``from_json`` reads them back."""
        return {
            section.name: {
                key.name: _written(getattr(getattr(self, section.name), key.name))
                for key in fields(getattr(self, section.name))
            }
            for section in fields(self)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Settings":
        """Settings of nested sections.

        Raises:
            SettingsError: A section or a key is unknown, or a value is wrong.
        """
        return _build(cls, data, "")


def load(path: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the file, then from ``EDGEFLEET_SECTION__KEY`` variables.

    Raises:
        SettingsError: The file cannot be read, or something in it or in the environment is wrong.
    """
    data = _read(path) if path else {}
    for name in sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX)):
        if name in FOLDERS:
            continue
        section, separator, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if not separator:
            raise SettingsError(f"{name}: unknown variable; settings are {ENVIRONMENT_PREFIX}SECTION__KEY")
        keys = data.setdefault(section, {})
        if not isinstance(keys, dict):
            raise SettingsError(f"{section}: must be a section with keys")
        keys[key] = environment[name]
    return Settings.from_json(data)


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; 'edgefleet init NAME' writes an example") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML: {error}") from error


T = TypeVar("T")


def _build(cls: type[T], data: Any, where: str) -> T:
    if not isinstance(data, Mapping):
        raise SettingsError(f"{where.rstrip('.')}: must be a section with keys")
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(data) - set(hints)):
        raise SettingsError(f"{where}{unknown[0]}: unknown setting; known are {', '.join(sorted(hints))}")
    return cls(**{key: _value(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the type a field declares; text is parsed, for the environment has nothing else."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, value, f"{where}.")
    try:
        if kind is timedelta:
            return _duration(value)
        if isinstance(kind, types.GenericAlias):
            parts = value.strip("[] ").split(",") if isinstance(value, str) else value
            return tuple(float(part) for part in parts)
        if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
            raise ValueError
        if kind is int and isinstance(value, float):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = _WANTED.get(kind, getattr(kind, "__name__", kind))
        raise SettingsError(f"{where}: {value!r} is not a valid {wanted}") from error


_WANTED = {timedelta: "duration, such as 30s, 10m, 1h or 2d", tuple[float, ...]: "list, such as 0.05, 0.25, 1"}


def _duration(text: Any) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(text))
    if match is None:
        raise ValueError
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


def _written(value: Any) -> Any:
    if value == math.inf:
        return "inf"  # JSON has no infinity
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"
    return list(value) if isinstance(value, tuple) else value
