"""A store in memory, and leases that others hold in it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from runner.core.layout import RunLayout
from runner.storage import lease, lease_owner
from runner.storage.object_store import ObjectStore


def make_memory_store(monkeypatch: pytest.MonkeyPatch, name: str) -> ObjectStore:
    monkeypatch.setattr(lease, "RACE_WINDOW_S", 0.05)
    for module in (lease, lease_owner):
        monkeypatch.setattr(module, "LEASE_RENEW_S", 0.1)
    return ObjectStore(f"memory://{name}/run", 5)


def put_holder(store: ObjectStore, **about: Any) -> None:
    known = {"host": "far", "machine": "far away", "pid": 1, "started": 0.0, "token": "theirs", "time": time.time()}
    store.put_text(json.dumps(known | about), RunLayout.lease)
