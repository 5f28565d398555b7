"""The owner of a lease: a process on some machine, and whether it is alive."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from runner.core.layout import RunLayout

if TYPE_CHECKING:
    from runner.storage.object_store import ObjectStore

log = logging.getLogger(__name__)

LEASE_RENEW_S = 10.0
"""How often an owner renews its lease."""

LEASE_EXPIRY_S = 60.0
"""An owner that has not renewed its lease for so long is dead."""


@dataclass(frozen=True)
class LeaseOwner:
    """The content of lease.json; the default values stand for content that can't be read.

    Attributes:
        host: name of the machine.
        machine: id of the machine as it booted, and of its process numbers: containers of one host differ.
        pid: of the process.
        started: when the process started, in seconds since the epoch.
        token: of the lease.
        time: of the renewal, by the owner's clock.
        heartbeat: counts renewals.
    """

    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    started: float = 0.0
    token: str = ""
    time: float = 0.0
    heartbeat: int = 0

    @staticmethod
    def this_process(token: str, heartbeat: int) -> LeaseOwner:
        """Return this process as the owner of a lease that it renews now."""
        process, host = psutil.Process(), socket.gethostname()
        return LeaseOwner(host, _machine_id(), process.pid, process.create_time(), token, time.time(), heartbeat)

    @staticmethod
    def parse(text: bytes) -> LeaseOwner:
        """Return the owner that a lease.json names; an unknown one where it can't be read."""
        try:
            values = json.loads(text)
            fields = asdict(LeaseOwner()).items()
            return LeaseOwner(**{key: type(default)(values.get(key, default)) for key, default in fields})
        except (ValueError, TypeError, AttributeError):
            return LeaseOwner()

    def to_json(self) -> str:
        """Return the text of lease.json."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"process {self.pid or '?'} on {self.host}"

    def is_alive(self, store: ObjectStore, timeout_s: float | None = None) -> bool:
        """Return whether the owner of the lease on an output is alive.

        It takes 15 s where the store has no clock, and the owner has not renewed its lease for long.

        Raises:
            StoreError: the store doesn't answer.
        """
        if store.conditions is not None:
            version = store.read_version(RunLayout.lease, timeout_s)
            return version is not None and LeaseOwner.parse(version.data).is_alive_after(version.age_s, store.url)
        if self.machine == _machine_id():
            return self._is_running()
        if abs(time.time() - self.time) < LEASE_EXPIRY_S:
            return True
        log.warning("%s: checking whether lease owner %s is alive", store.url, self)
        time.sleep(1.5 * LEASE_RENEW_S)  # its clock may be wrong
        text = store.read(RunLayout.lease, timeout_s)
        return text is not None and LeaseOwner.parse(text) != self

    def is_alive_after(self, age_s: float, url: str) -> bool:
        """Return whether the owner is alive, given the age of its lease by the store's clock."""
        if self.machine == _machine_id():
            return self._is_running()
        if age_s >= LEASE_EXPIRY_S:
            log.warning("%s: lease owner %s has not renewed its lease for %.0f s", url, self, age_s)
        return age_s < LEASE_EXPIRY_S

    def _is_running(self) -> bool:
        """Return whether a process of this machine has the owner's number and start time."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(float(process.create_time()) - self.started) < 1
            return is_same and str(process.status()) != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError):
            return False


def _machine_id() -> str:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"
