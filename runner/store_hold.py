"""One command at a time has an output in an object store: an object says which, and is written anew while it lives.

Object stores have no locks.  A command reads ``.runner/holder.json``, writes its own, and looks after a while whose is
there; of two that begin at once the later writer stays.  A holder that has not been seen for a minute is dead.  What
decides in the end is the worker's look at the object before each shard's commit: who lost it commits no more.
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
from typing import Any

import psutil

from runner.errors import ConfigError, StoreError
from runner.journal import STATE
from runner.store_client import Store

log = logging.getLogger(__name__)

HOLDER_OBJECT = f"{STATE}/holder.json"
BEAT_S = 10.0
"""How often a holder's object is written."""
STALE_S = 60.0
"""A holder that was not written for so long is taken for dead."""
_SETTLE_S = 1.0
"""How long another command may take between its look at the object and its own put."""
_PROBE_S = 30.0
"""How long the store may take to answer for the first time."""


class Hold:
    """This command's hold on an output."""

    def __init__(self, store: Store) -> None:
        self.token = uuid.uuid4().hex
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="holder", daemon=True)
        self._taken_at: float | None = None
        self._patience_s = min(_PROBE_S, store.timeout_s)

    def take(self) -> None:
        """Take the output, if nobody has it, and keep it until ``release``; ``confirm`` must follow.

        Raises:
            ConfigError: another command has it.
            StoreError: the store can't be read and written.
        """
        found = read_holder(self._store, self._patience_s)
        if found is not None and is_alive(self._store, found, self._patience_s):
            raise ConfigError(_in_use(self._store, found))
        try:
            self._put()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise ConfigError(
                    f"{self._store.key}={self._store.url} is in a bucket that is not there: make it, or name another"
                ) from error
            raise
        self._taken_at = time.monotonic()
        self._thread.start()

    def confirm(self) -> None:
        """Make sure that no other command took it at the same moment."""
        assert self._taken_at is not None
        time.sleep(max(0.0, self._taken_at + _SETTLE_S - time.monotonic()))
        check_hold(self._store, self.token)

    def is_ours(self) -> bool:
        """Whether the output is still this command's; for all that is known, where the store doesn't answer."""
        if self._taken_at is None:
            return False
        try:
            check_hold(self._store, self.token, BEAT_S)
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
        try:
            if self.is_ours():
                self._store.remove(HOLDER_OBJECT, BEAT_S)
        except StoreError as error:
            log.warning("%s (another command on this machine can take it at once, others in a minute)", error)
        self._taken_at = None

    def _put(self) -> None:
        about = {**_self(), "token": self.token, "time": time.time()}
        self._store.put_text(json.dumps(about), HOLDER_OBJECT, self._patience_s)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                check_hold(self._store, self.token, self._patience_s)
                self._put()
            except ConfigError as error:
                log.error("%s", error)
                return
            except StoreError as error:  # the worker will say more
                log.warning("%s", error)


def check_hold(store: Store, token: str, timeout_s: float | None = None) -> None:
    """Whether the output is still this command's.

    Raises:
        ConfigError: another has it, or its object was removed.
        StoreError: the store doesn't answer.
    """
    found = read_holder(store, timeout_s)
    if found is None:
        raise ConfigError(f"{store.url}: {HOLDER_OBJECT} was removed, so that others may write there: nothing more is")
    if found.get("token") != token:
        raise ConfigError(_in_use(store, found))


def is_alive(store: Store, holder: Mapping[str, Any], timeout_s: float | None = None) -> bool:
    """Whether a holder lives; takes 15 s where it is another machine's and was not seen for long.

    Raises:
        StoreError: the store doesn't answer.
    """
    if holder.get("machine") == _self()["machine"]:
        return _runs(holder)
    if abs(time.time() - float(holder.get("time", 0))) < STALE_S:
        return True
    log.warning("%s was held by %s: looking whether it lives", store.url, describe(holder))
    time.sleep(1.5 * BEAT_S)  # it may live by a clock of its own
    return read_holder(store, timeout_s) not in (holder, None)


def read_holder(store: Store, timeout_s: float | None = None) -> Mapping[str, Any] | None:
    """What the holder's object says; None where there is none."""
    text = store.read(HOLDER_OBJECT, timeout_s)
    if text is None:
        return None
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
