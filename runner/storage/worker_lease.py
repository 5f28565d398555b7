"""How long a worker may write: what is left of its command's hold, by the store's clock (``runner.storage.lease``).

A worker, on whatever machine, sees the holder's object and its age.  Its puts end before another command may take the
output, whatever they are waiting for; one that takes long goes on while the command renews the object.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from runner.core.clock import clock
from runner.core.errors import ConfigError, StoreError
from runner.core.layout import HOLDER_OBJECT
from runner.storage.lease import LEASE_EXPIRY_S, LEASE_RENEW_S, LEASE_S, about_holder, check_lease, why_lost

if TYPE_CHECKING:
    from runner.storage.object_store import Store

log = logging.getLogger(__name__)


class WorkerLease:
    """What a worker knows of its command's hold; it is the worker's fence.

    Args:
        store: the output's.
        token: the hold's.
    """

    def __init__(self, store: Store, token: str) -> None:
        self._store, self._token = store, token
        self._lock = threading.Lock()
        self._until = self._looked_at = -LEASE_EXPIRY_S

    def look(self) -> None:
        """See whether the output is still the command's.

        Raises:
            StoreError: it is not, or the store doesn't answer.
        """
        try:
            self._look()
        except ConfigError as error:
            raise StoreError(str(error)) from error

    def left(self) -> float:
        """For how many seconds this worker may write; raises StoreError where another has the output."""
        with self._lock:
            if clock() >= self._looked_at + LEASE_RENEW_S / 2:
                self._looked_at = clock()
                try:
                    self._look(LEASE_RENEW_S / 2)
                except ConfigError as error:
                    raise StoreError(str(error)) from error
                except StoreError as error:
                    log.warning("%s", error)
            return self._until - clock()

    def _look(self, timeout_s: float | None = None) -> None:
        if self._store.conditions is None:
            check_lease(self._store, self._token, timeout_s)
            return
        begun = clock()
        seen = self._store.look(HOLDER_OBJECT, timeout_s)
        if seen is None or about_holder(seen.data).get("token") != self._token:
            raise ConfigError(why_lost(self._store, None if seen is None else about_holder(seen.data)))
        self._looked_at, self._until = begun, begun + LEASE_S - seen.age_s
