"""The address of the Ray cluster of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runner.core.errors import ConfigError

if TYPE_CHECKING:
    from runner.config.schema import RayEngineConfig


def address_of(engine: RayEngineConfig) -> str | None:
    """Return the configured address, or RAY_ADDRESS, which ``ray job submit`` sets; None to start Ray here.

    Raises:
        ConfigError: it is the address of a Ray client, not of a driver.
    """
    address = engine.address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        key = "engine.address" if engine.address else "RAY_ADDRESS"
        raise ConfigError(
            f"{key}={address} is an address for Ray's clients, but a run needs a machine of the cluster: submit it "
            "there with `ray job submit`, or give host:6379 on a machine of the cluster"
        )
    return None if address in (None, "", "local") else address
