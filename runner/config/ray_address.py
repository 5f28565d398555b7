"""The address of the Ray cluster of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runner.core.errors import ConfigError

if TYPE_CHECKING:
    from runner.config.schema import RayEngineConfig


def address_of(engine: RayEngineConfig) -> str | None:
    """The cluster's address: the one configured, or RAY_ADDRESS, which ``ray job submit`` sets; None for an own Ray.

    Raises:
        ConfigError: it is one that no driver can take.
    """
    address = engine.address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        key = "engine.address" if engine.address else "RAY_ADDRESS"
        raise ConfigError(
            f"{key}={address} is an address for Ray's clients, and a run must be on a machine of the cluster: send it "
            "there with `ray job submit`, or give host:6379 on a machine of the cluster"
        )
    return None if address in (None, "", "local") else address
