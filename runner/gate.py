"""The parity gate of many actors: each distinct device model is measured once, by whoever is there first."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from runner.cold_start import take_through_gate
from runner.config import ParityConfig
from runner.files import write_atomic
from runner.hardware import versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.vggish.session import VGGishSession

log = logging.getLogger("runner.worker")

PARITY = "parity"
"""Folder in a run's state with a verdict a device model."""
_PATIENCE_S = 300.0
"""Who waits longer for another's verdict measures for itself."""


def once_a_model(folder: Path, who: str) -> Callable[..., str | None]:
    """A gate in the place of ``take_through_gate`` that takes over what another has measured on the same device model.

    The same are: name and kind of device, precision, algorithm, compiler, weights, type of windows, rows at once and
    versions.  ``result["parity"]`` says in ``measured_by`` who did, and in ``taken_over`` whether that was another; a
    verdict against the device is taken over too.

    Args:
        folder: where verdicts lie, on storage that all see.
        who: this process, for others to read.
    """

    def gate(
        sessions: Sequence[VGGishSession],
        expected: NDArray[np.float32],
        config: ParityConfig,
        *,
        cached: bool,
        result: dict[str, Any],
        dtype: str = "float32",
    ) -> str | None:
        key = _key(sessions[0], dtype)
        path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"), timeout=_PATIENCE_S)
        try:
            lock.acquire()
        except Timeout:
            log.warning("%s is not released: the gate is measured once more", lock.lock_file)
            return take_through_gate(sessions, expected, config, cached=cached, result=result, dtype=dtype)
        try:
            found = _read(path)
            taken_over = found is not None
            if found is None:
                own: dict[str, Any] = {"metrics": {}}
                missed = take_through_gate(sessions, expected, config, cached=cached, result=own, dtype=dtype)
                found = {"key": key, "by": who, "missed": missed, "parity": own["parity"], "metrics": own["metrics"]}
                write_atomic(path, json.dumps(found))
        finally:
            lock.release()
        result["parity"] = {**found["parity"], "measured_by": found["by"], "taken_over": taken_over}
        result["metrics"] |= found["metrics"]
        verdict: str | None = found["missed"]
        return verdict

    return gate


def _key(session: VGGishSession, dtype: str) -> dict[str, Any]:
    metadata = session.metadata
    return {
        "device": [metadata.device["effective"], metadata.device["name"]],
        "precision": metadata.precision["effective"],
        "conv": metadata.model["conv"]["effective"],
        "compiler": session.compiler["effective"],
        "weights": metadata.weights["checksum"],
        "dtype": dtype,
        "rows": session.fewest,
        "versions": versions(),
    }


def _read(path: Path) -> dict[str, Any] | None:
    """A verdict; None where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"by", "missed", "parity", "metrics"} <= found.keys() else None
