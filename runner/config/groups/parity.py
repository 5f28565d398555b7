"""``parity=``: the check of a device's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from runner.config.checks import names_of, one_of
from runner.config.groups.precision import PRECISIONS
from runner.core.errors import ConfigError


@dataclass
class ToleranceConfig:
    """Largest errors of a device against the reference; ``runner.inference.parity.Parity`` defines the measures."""

    rel_err: float = 0.0
    """Largest difference over the largest expected value."""

    min_cosine: float = 1.0
    """Least cosine of an embedding with the expected one, from -1 to 1."""

    scale_err: float = 0.0
    """Distance from 1 of the best common factor between the two."""

    noise_ratio: float = 0.0
    """Error over that of rounding alone."""

    bias_ratio: float = 0.0
    """Error that is left after averaging over the signals, over that of rounding alone."""

    log_mel_err: float = 0.0
    """Largest difference of the log-mel."""


@dataclass
class ParityConfig:
    """The check of a device against the reference's answers to fixed signals: before any clip, and during the run."""

    name: str = "strict"
    """A device out of tolerance: strict (the run fails), warn (it goes on, unranked); off: no check, no ranking."""

    tolerances: dict[str, ToleranceConfig] = field(
        default_factory=lambda: {
            "float32": ToleranceConfig(2e-5, 0.999999, 1e-5, 60.0, 30.0, 2e-5),
            "tf32": ToleranceConfig(5e-3, 0.99999, 1e-3, 2.0, 1.5, 2e-3),
            "float16": ToleranceConfig(5e-3, 0.99999, 1e-3, 2.0, 1.5, 2e-3),
            "bfloat16": ToleranceConfig(3e-2, 0.9998, 5e-3, 1.5, 0.9, 2e-3),
        }
    )
    """Tolerances by effective precision; the page on numerics has their measurements and the faults that they catch."""

    def __post_init__(self) -> None:
        one_of("parity.name", self.name, ("strict", "warn", "off"))
        names_of("parity.tolerances", self.tolerances, PRECISIONS[1:])
        keys = [key.name for key in fields(ToleranceConfig)]
        if missing := [name for name in PRECISIONS[1:] if name not in self.tolerances]:
            raise ConfigError(f"parity.tolerances has none for {', '.join(missing)}: give {', '.join(keys)}")
        self.tolerances = {name: _read_tolerance(name, tolerance) for name, tolerance in self.tolerances.items()}


def _read_tolerance(precision: str, limits: ToleranceConfig | Mapping[str, float]) -> ToleranceConfig:
    """Return the limits of a precision, each of which some device can meet and another miss."""
    key = f"parity.tolerances.{precision}"
    if isinstance(limits, Mapping):
        known = [field.name for field in fields(ToleranceConfig)]
        if unknown := [name for name in limits if name not in known]:
            raise ConfigError(f"{key}.{unknown[0]} is not a key of the configuration: it has {', '.join(known)}")
        limits = ToleranceConfig(**limits)
    for name, value in asdict(limits).items():
        minimum, maximum = (-1.0, 1.0) if name == "min_cosine" else (0.0, math.inf)
        if not (math.isfinite(value) and minimum <= value <= maximum):
            allowed = "from -1 to 1" if name == "min_cosine" else "from 0, and finite"
            raise ConfigError(f"{key}.{name}={value} is not a tolerance: use a number {allowed}")
    return limits
