"""A configuration as flat parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from runner.core.redact import without_credentials

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

ACTUAL = "actual."
"""Prefix of the parameters with the settings that took effect."""

MAX_PARAM = 6000

_NOT_IN_KEYS = re.compile(r"[^\w\-. /]")

EXCLUDED_PARAMS = ("memory.default_batch_size.", "profile.device_benchmark_s.", "parity.tolerances.")


def config_params(config: RunConfig) -> dict[str, str]:
    """Flatten a configuration to dotted keys and texts, without credentials, as MLflow takes parameters.

    Tables (by kind of device, by precision) are left out: ``actual.*`` has the values that took effect, and the
    artifacts have the whole configuration.
    """
    flat = [(key, value) for key, value in _flat("", asdict(config)) if not key.startswith(EXCLUDED_PARAMS)]
    return {_NOT_IN_KEYS.sub("_", key): _text(value) for key, value in flat}


def _flat(prefix: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [
            pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else str(key), inner)
        ]
    return [(prefix, value)]


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return without_credentials(str(value))[:MAX_PARAM]


_ACTUAL_BEFORE = "resolved."
"""``ACTUAL`` in runs of earlier versions."""
