"""How long a worker may write: until its command's lease expires, by the store's clock (``runner.storage.lease``).

A worker, on whatever machine, reads the lease and its age.  Its uploads end before another command may acquire the
output, whatever they wait for; a long one continues while the command renews the lease.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from runner.core.errors import ConfigError, StoreError
from runner.core.layout import RunLayout
from runner.storage.fence import clock
from runner.storage.lease import LEASE_WRITE_S, check_lease, why_lost
from runner.storage.lease_owner import LEASE_EXPIRY_S, LEASE_RENEW_S, LeaseOwner

if TYPE_CHECKING:
    from runner.storage.object_store import ObjectStore

log = logging.getLogger(__name__)


class WorkerLease:
    """The lease of a worker's command; it is the fence of the worker's store.

    Args:
        store: of the output.
        token: of the command's lease.
    """

    def __init__(self, store: ObjectStore, token: str) -> None:
        self._store, self._token = store, token
        self._lock = threading.Lock()
        self._expires_at = self._read_at = -LEASE_EXPIRY_S

    def check(self) -> None:
        """Check that the command still holds the output.

        Raises:
            StoreError: it does not, or the store doesn't answer.
        """
        try:
            self._read()
        except ConfigError as error:
            raise StoreError(str(error)) from error

    def seconds_left(self) -> float:
        """Return for how many seconds this worker may still write; see ``Fence``."""
        with self._lock:
            if clock() >= self._read_at + LEASE_RENEW_S / 2:
                self._read_at = clock()
                try:
                    self._read(LEASE_RENEW_S / 2)
                except ConfigError as error:
                    raise StoreError(str(error)) from error
                except StoreError as error:
                    log.warning("%s", error)
            return self._expires_at - clock()

    def _read(self, timeout_s: float | None = None) -> None:
        if self._store.conditions is None:
            check_lease(self._store, self._token, timeout_s)
            return
        started_at = clock()
        version = self._store.read_version(RunLayout.lease, timeout_s)
        owner = None if version is None else LeaseOwner.parse(version.data)
        if version is None or owner is None or owner.token != self._token:
            raise ConfigError(why_lost(self._store, owner))
        self._read_at, self._expires_at = started_at, started_at + LEASE_WRITE_S - version.age_s
