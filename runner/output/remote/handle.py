"""What a worker needs to know of its run's output in an object store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteHandle:
    """A run's output in an object store, as its command hands it to workers.

    Attributes:
        url: of the output.
        token: of the lease that the command holds.
        plan_id: of the run's plan, for commit objects.
        is_conditional: whether the store honors conditional requests; without them the lease is checked before each
            commit.
    """

    url: str
    token: str
    plan_id: str
    is_conditional: bool
