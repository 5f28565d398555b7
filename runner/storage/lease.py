"""One command at a time has an output in an object store: an object says which, and is written anew while it lives.

``.runner/lease.json`` is a lease.  It is made only where there is none, and renewed, taken over and removed only in
the version that was seen: of two commands that begin at once, or find a dead one's, the store lets one through.  A
holder that was not seen for a minute, by the store's clock, is dead.  What it still has under way stops 15 s before
that (``left``), whatever its own patience says.

Stores without conditional requests (``runner.storage.conditional``) get what they can: a command looks after a while
whose
object is there, and the worker before each shard's commit; of two that begin at once the later writer stays.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from runner.core.clock import clock
from runner.core.errors import ConfigError, StoreError
from runner.core.layout import HOLDER_OBJECT
from runner.storage.conditional import is_unknown

if TYPE_CHECKING:
    from runner.storage.object_store import Store

log = logging.getLogger(__name__)

LEASE_RENEW_S = 10.0
"""How often a holder's object is written."""

LEASE_EXPIRY_S = 60.0
"""A holder that was not written for so long is taken for dead."""

LEASE_S = 45.0
"""For how long after its object was written a holder may write; the rest is for clocks of a second, and requests under
way."""

RACE_WINDOW_S = 1.0
"""How long another command may take between its look at the object and its own put, where nothing is conditional."""

CONNECT_TIMEOUT_S = 30.0
"""How long the store may take to answer for the first time."""


class Lease:
    """This command's hold on an output; while it lasts it is the store's fence."""

    def __init__(self, store: Store) -> None:
        self.token = uuid.uuid4().hex
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="holder", daemon=True)
        self._taken_at: float | None = None
        self._patience_s = min(CONNECT_TIMEOUT_S, store.timeout_s)
        self._version, self._until = "", 0.0
        self._beats = 0
        self._lost: str | None = None

    def take(self) -> None:
        """Take the output, if nobody has it, and keep it until ``release``; ``confirm`` must follow.

        Raises:
            ConfigError: another command has it.
            StoreError: the store can't be read and written.
        """
        try:
            if self._store.conditions is not None:
                self._take_fenced()
            if self._store.conditions is None:
                self._take_unfenced()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise ConfigError(
                    f"{self._store.key}={self._store.url} is in a bucket that is not there: make it, or name another"
                ) from error
            raise
        self._taken_at = time.monotonic()
        self._thread.start()

    def confirm(self) -> None:
        """Make sure that no other command took it at the same moment, where the store didn't."""
        assert self._taken_at is not None
        if self._store.conditions is None:
            time.sleep(max(0.0, self._taken_at + RACE_WINDOW_S - time.monotonic()))
            check_lease(self._store, self.token)

    def left(self) -> float:
        """For how many seconds this command may write; raises StoreError where another has the output."""
        if self._lost is not None:
            raise StoreError(self._lost)
        return self._until - clock()

    def is_held(self) -> bool:
        """Whether the output is still this command's; for all that is known, where the store doesn't answer."""
        if self._taken_at is None:
            return False
        try:
            check_lease(self._store, self.token, LEASE_RENEW_S)
        except ConfigError:
            return False
        except StoreError as error:
            log.warning("%s", error)
        return True

    def release(self) -> None:
        """Give the output up."""
        if self._taken_at is None:
            return
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._store.fence = None
        try:
            if self._store.conditions is not None:
                seen = self._store.look(HOLDER_OBJECT, LEASE_RENEW_S)
                if seen is not None and about_holder(seen.data).get("token") == self.token:
                    self._store.remove_version(HOLDER_OBJECT, seen.id, LEASE_RENEW_S)
            elif self.is_held():
                self._store.remove(HOLDER_OBJECT, LEASE_RENEW_S)
        except StoreError as error:
            log.warning("%s (another command on this machine can take it at once, others in a minute)", error)
        self._taken_at = None

    def _take_fenced(self) -> None:
        """By conditional requests; forgets those of the store where it does not keep to them."""
        store, begun, text = self._store, clock(), self._text()
        found = store.look(HOLDER_OBJECT, self._patience_s)
        if found is None:
            try:
                mine = store.create_text(text, HOLDER_OBJECT, self._patience_s)
                if mine and not store.keeps_conditions(HOLDER_OBJECT, text, self._patience_s):
                    store.conditions = None
            except StoreError as error:
                if not is_unknown(error.__cause__):
                    raise
                store.conditions = None
            if store.conditions is None:
                return
        else:
            if lives(store, about_holder(found.data), found.age_s):
                raise ConfigError(_in_use(store, about_holder(found.data)))
            mine = store.replace_text(text, HOLDER_OBJECT, found.id, self._patience_s) is not None
        seen = store.look(HOLDER_OBJECT, self._patience_s)
        if not mine or seen is None or seen.data != text.encode():
            raise ConfigError(_in_use(store, about_holder(seen.data) if seen else {}))
        self._version, self._until = seen.id, begun + LEASE_S
        store.fence = self

    def _take_unfenced(self) -> None:
        store = self._store
        found = read_holder(store, self._patience_s)
        if found is not None and found.get("token") != self.token and is_alive(store, found, self._patience_s):
            raise ConfigError(_in_use(store, found))
        log.warning("%s has no conditional puts: two commands are kept apart by a look before each commit", store.url)
        store.put_text(self._text(), HOLDER_OBJECT, self._patience_s)

    def _text(self) -> str:
        self._beats += 1  # no two versions are alike
        return json.dumps({**_self(), "token": self.token, "time": time.time(), "heartbeat": self._beats})

    def _renew(self) -> None:
        """Write the object anew.

        Raises:
            ConfigError: another has the output, or the object was removed.
            StoreError: the store doesn't answer.
        """
        store, begun = self._store, clock()
        if store.conditions is None:
            check_lease(store, self.token, self._patience_s)
            store.put_text(self._text(), HOLDER_OBJECT, self._patience_s)
            return
        text = self._text()
        while (version := store.replace_text(text, HOLDER_OBJECT, self._version, self._patience_s)) is None:
            seen = store.look(HOLDER_OBJECT, self._patience_s)
            if seen is None or about_holder(seen.data).get("token") != self.token:
                raise ConfigError(why_lost(store, None if seen is None else about_holder(seen.data)))
            self._version = seen.id  # of a beat that was given up, and arrived all the same
        self._version, self._until = version, begun + LEASE_S

    def _beat(self) -> None:
        while not self._over.wait(LEASE_RENEW_S):
            try:
                self._renew()
            except ConfigError as error:
                self._lost = str(error)
                log.error("%s", error)
                return
            except StoreError as error:  # the worker will say more
                log.warning("%s", error)


def check_lease(store: Store, token: str, timeout_s: float | None = None) -> None:
    """Whether the output is still this command's.

    Raises:
        ConfigError: another has it, or its object was removed.
        StoreError: the store doesn't answer.
    """
    found = read_holder(store, timeout_s)
    if found is None or found.get("token") != token:
        raise ConfigError(why_lost(store, found))


def is_alive(store: Store, holder: Mapping[str, Any], timeout_s: float | None = None) -> bool:
    """Whether a holder lives; takes 15 s where the store has no clock, and it was not seen for long.

    Raises:
        StoreError: the store doesn't answer.
    """
    if store.conditions is not None:
        seen = store.look(HOLDER_OBJECT, timeout_s)
        return seen is not None and lives(store, about_holder(seen.data), seen.age_s)
    if holder.get("machine") == _self()["machine"]:
        return _runs(holder)
    if abs(time.time() - float(holder.get("time", 0))) < LEASE_EXPIRY_S:
        return True
    log.warning("%s was held by %s: checking whether that process is alive", store.url, describe(holder))
    time.sleep(1.5 * LEASE_RENEW_S)  # it may live by a clock of its own
    return read_holder(store, timeout_s) not in (holder, None)


def lives(store: Store, holder: Mapping[str, Any], age_s: float) -> bool:
    """Whether a holder lives whose object was written so many seconds ago, by the store's clock."""
    if holder.get("machine") == _self()["machine"]:
        return _runs(holder)
    if age_s >= LEASE_EXPIRY_S:
        log.warning("%s was held by %s, which has not been seen for %.0f s", store.url, describe(holder), age_s)
    return age_s < LEASE_EXPIRY_S


def read_holder(store: Store, timeout_s: float | None = None) -> Mapping[str, Any] | None:
    """What the holder's object says; None where there is none."""
    text = store.read(HOLDER_OBJECT, timeout_s)
    return None if text is None else about_holder(text)


def about_holder(text: bytes) -> Mapping[str, Any]:
    """What the text of a holder's object says; empty where it says nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def describe(holder: Mapping[str, Any]) -> str:
    """A holder, for messages."""
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"


def _in_use(store: Store, holder: Mapping[str, Any]) -> str:
    place = f"{store.key}={store.url}"
    return f"{place} is in use by another command ({describe(holder)}): wait for it, or name another folder"


def why_lost(store: Store, holder: Mapping[str, Any] | None) -> str:
    """Why the output is no longer a command's, given who has it."""
    if holder is None:
        return f"{store.url}: {HOLDER_OBJECT} was removed, so that others may write there: nothing more is"
    return _in_use(store, holder)


def _self() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": process.pid,
        "started": process.create_time(),
    }


def _machine() -> str:
    """What tells machines apart whose process numbers mean other processes: containers of one host, too."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _runs(holder: Mapping[str, Any]) -> bool:
    """Whether a holder on this machine is alive: a process of its number that was started when it was."""
    try:
        process = psutil.Process(int(holder["pid"]))
        same = abs(float(process.create_time()) - float(holder["started"])) < 1
        return same and str(process.status()) != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False
