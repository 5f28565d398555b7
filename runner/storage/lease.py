"""A renewable lease on an output in an object store: one command at a time holds it.

The lease is an object, ``.runner/lease.json``.  It is created only if there is none, and renewed, taken over and
removed only in the version that was read: of two commands that start at once, or find a dead one's lease, the store
lets one through.  An owner that has not renewed its lease for a minute, by the store's clock, is dead.  Its uploads end
15 s before that (``seconds_left``), whatever time limit they have.

Without conditional requests (``runner.storage.conditional``) the lease is only checked: by a command a moment after it
was written, and by workers before each commit.  Of two commands that start at once the later writer keeps it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import TYPE_CHECKING

from runner.core.errors import ConfigError, StoreError
from runner.core.interruption import Interrupted, cleanup_limit_s
from runner.core.layout import RunLayout
from runner.storage.conditional import is_unsupported
from runner.storage.fence import clock
from runner.storage.lease_owner import LEASE_RENEW_S, LeaseOwner

if TYPE_CHECKING:
    from runner.storage.object_store import ObjectStore

log = logging.getLogger(__name__)

LEASE_WRITE_S = 45.0
"""How long after a renewal the owner may write; the rest until expiry allows for clocks of whole seconds, and for
requests in progress."""

RACE_WINDOW_S = 1.0
"""How long another command may take between its check and its own upload, without conditional requests."""

CONNECT_TIMEOUT_S = 30.0
"""How long the store may take for its first answer."""


class Lease:
    """This command's lease on an output; it is the store's fence while it is held.

    Args:
        store: of the output.

    Attributes:
        token: that identifies this lease to workers.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.token = uuid.uuid4().hex
        self._store = store
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name="lease", daemon=True)
        self._acquired_at: float | None = None
        self._timeout_s = min(CONNECT_TIMEOUT_S, store.timeout_s)
        self._version_id, self._expires_at = "", 0.0
        self._renewals = 0
        self._lost: str | None = None

    def acquire(self) -> None:
        """Acquire the lease and renew it until ``release``; ``confirm`` must follow.

        Raises:
            ConfigError: another command holds it, or the bucket does not exist.
            StoreError: the store can't be read and written.
        """
        try:
            if self._store.conditions is not None:
                self._acquire_conditionally()
            if self._store.conditions is None:
                self._acquire_unconditionally()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise ConfigError(
                    f"{self._store.key}={self._store.url} is in a bucket that does not exist: make it, or choose one"
                ) from error
            raise
        self._acquired_at = time.monotonic()
        self._thread.start()

    def confirm(self) -> None:
        """Check that no other command acquired it at the same moment, where the store can't prevent that.

        Raises:
            ConfigError: another command holds it.
        """
        assert self._acquired_at is not None
        if self._store.conditions is None:
            time.sleep(max(0.0, self._acquired_at + RACE_WINDOW_S - time.monotonic()))
            check_lease(self._store, self.token)

    def seconds_left(self) -> float:
        """Return for how many seconds this command may still write; see ``Fence``."""
        if self._lost is not None:
            raise StoreError(self._lost)
        return self._expires_at - clock()

    def is_held(self) -> bool:
        """Return whether this command still holds the lease; True where the store doesn't answer."""
        if self._acquired_at is None:
            return False
        try:
            check_lease(self._store, self.token, cleanup_limit_s(LEASE_RENEW_S))
        except ConfigError:
            return False
        except StoreError as error:
            log.warning("%s", error)
        return True

    def release(self) -> None:
        """Stop renewing the lease and remove it; do nothing if it is not held."""
        if self._acquired_at is None:
            return
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        self._store.fence = None
        try:
            if self._store.conditions is not None:
                version = self._store.read_version(RunLayout.lease, cleanup_limit_s(LEASE_RENEW_S))
                if version is not None and LeaseOwner.parse(version.data).token == self.token:
                    self._store.remove_version(RunLayout.lease, version.id, cleanup_limit_s(LEASE_RENEW_S))
            elif self.is_held():
                self._store.remove(RunLayout.lease, cleanup_limit_s(LEASE_RENEW_S))
        except StoreError as error:
            log.warning("%s (commands on this machine can acquire the output now, others in a minute)", error)
        self._acquired_at = None

    def _acquire_conditionally(self) -> None:
        """Acquire the lease by conditional requests; clear the store's ``conditions`` if it doesn't honor them."""
        store, started_at, text = self._store, clock(), self._text()
        version = store.read_version(RunLayout.lease, self._timeout_s)
        if version is None:
            try:
                is_ours = store.create_text(text, RunLayout.lease, self._timeout_s)
                if is_ours and not store.honors_conditions(RunLayout.lease, text, self._timeout_s):
                    store.conditions = None
            except StoreError as error:
                if not is_unsupported(error.__cause__):
                    raise
                store.conditions = None
            if store.conditions is None:
                return
        else:
            owner = LeaseOwner.parse(version.data)
            if owner.is_alive_after(version.age_s, store.url):
                raise ConfigError(_in_use(store, owner))
            is_ours = store.replace_text(text, RunLayout.lease, version.id, self._timeout_s) is not None
        version = store.read_version(RunLayout.lease, self._timeout_s)
        if not is_ours or version is None or version.data != text.encode():
            raise ConfigError(_in_use(store, LeaseOwner.parse(version.data) if version else LeaseOwner()))
        self._version_id, self._expires_at = version.id, started_at + LEASE_WRITE_S
        store.fence = self

    def _acquire_unconditionally(self) -> None:
        store = self._store
        owner = read_owner(store, self._timeout_s)
        if owner is not None and owner.token != self.token and owner.is_alive(store, self._timeout_s):
            raise ConfigError(_in_use(store, owner))
        log.warning("%s has no conditional requests: commands check the lease before each commit instead", store.url)
        store.put_text(self._text(), RunLayout.lease, self._timeout_s)

    def _text(self) -> str:
        self._renewals += 1  # makes all versions different
        return LeaseOwner.this_process(self.token, self._renewals).to_json()

    def _renew(self) -> None:
        """Renew the lease.

        Raises:
            ConfigError: another command holds it, or it was removed.
            StoreError: the store doesn't answer.
        """
        store, started_at = self._store, clock()
        if store.conditions is None:
            check_lease(store, self.token, self._timeout_s)
            store.put_text(self._text(), RunLayout.lease, self._timeout_s)
            return
        text = self._text()
        while (new_id := store.replace_text(text, RunLayout.lease, self._version_id, self._timeout_s)) is None:
            version = store.read_version(RunLayout.lease, self._timeout_s)
            if version is None or LeaseOwner.parse(version.data).token != self.token:
                raise ConfigError(why_lost(store, None if version is None else LeaseOwner.parse(version.data)))
            self._version_id = version.id  # of a renewal that timed out, and arrived nevertheless
        self._version_id, self._expires_at = new_id, started_at + LEASE_WRITE_S

    def _renew_until_released(self) -> None:
        while not self._released.wait(LEASE_RENEW_S):
            try:
                self._renew()
            except ConfigError as error:
                self._lost = str(error)
                log.error("%s", error)
                return
            except StoreError as error:  # the fence ends the worker's uploads, with an error of their own
                log.warning("%s", error)
            except Interrupted:  # this command's cleanup may still need the lease
                continue


def check_lease(store: ObjectStore, token: str, timeout_s: float | None = None) -> None:
    """Check that the lease is still the one of this token.

    Raises:
        ConfigError: another command holds it, or it was removed.
        StoreError: the store doesn't answer.
    """
    owner = read_owner(store, timeout_s)
    if owner is None or owner.token != token:
        raise ConfigError(why_lost(store, owner))


def read_owner(store: ObjectStore, timeout_s: float | None = None) -> LeaseOwner | None:
    """Return the owner of the lease on an output; None if there is no lease."""
    text = store.read(RunLayout.lease, timeout_s)
    return None if text is None else LeaseOwner.parse(text)


def why_lost(store: ObjectStore, owner: LeaseOwner | None) -> str:
    """Return a message on a lost lease; ``owner`` holds the output now, None if the lease was removed."""
    if owner is None:
        return f"{store.url}: {RunLayout.lease} was removed, so that other commands may write there: stopped writing"
    return _in_use(store, owner)


def _in_use(store: ObjectStore, owner: LeaseOwner) -> str:
    return f"{store.key}={store.url} is in use by another command ({owner}): wait for it, or choose another output.dir"
