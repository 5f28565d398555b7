"""What an actor of ``engine=ray`` does: it owns one session and decode processes, and embeds shards with the engine.

Its files are the local engine's, written by the same code into the run's folder; what goes back to the driver is a
report: a line a shard for the journal, and how long it took.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.cold_start import ColdStart, Events, make_ready
from runner.config import from_dict
from runner.embed_run import decode_options, file_metadata, labels_of, read_clips, window_types
from runner.engine import Engine, Lane
from runner.journal import ShardEntry
from runner.limits import SkipLimit
from runner.measure import steady_metrics
from runner.output import RunWriter, make_formats
from runner.pool import DecodePool
from runner.taking_up import failure_kind, failure_message, identity_of

log = logging.getLogger("runner.worker")

_CLIPS_PER_DECODER = 16


class Entries:
    """In the place of a journal: keeps the lines for the report."""

    def __init__(self) -> None:
        self.kept: list[ShardEntry] = []

    def append(self, entry: ShardEntry) -> None:
        """Keep a line."""
        self.kept.append(entry)

    def close(self) -> None:
        """Nothing is open."""


class _ShardWriter(RunWriter):
    """Writes shards; clips.parquet is the driver's to make."""

    def close(self) -> None:
        """The driver closes the run."""


class EmbedShards:
    """A stateful function for ``map_batches``: rows with ``shards`` (a JSON list of numbers) to rows with ``report``.

    Args:
        spec_path: of the run's spec, a JSON file.
    """

    def __init__(self, spec_path: str) -> None:
        # A decode process would import the main module anew, which here is Ray's own worker.
        sys.modules["__main__"].__file__ = None
        started_at = time.time()
        spec: dict[str, Any] = json.loads(Path(spec_path).read_text(encoding="utf-8"))
        self._spec = spec = dict(spec, spawned_at=started_at)
        self._error: dict[str, Any] | None = None
        self._about: dict[str, Any] = {"metrics": {}, "host": socket.gethostname(), "node": _node(), "pid": os.getpid()}
        try:
            self._make(spec)
        except Exception as error:
            log.exception("the actor can't work")
            self._error = {"kind": failure_kind(error), "message": failure_message(error)}

    def _make(self, spec: dict[str, Any]) -> None:
        self._config = config = from_dict(spec["config"])
        self._manifest, self._run_dir = Path(spec["manifest"]), Path(spec["run_dir"])
        spec["dtypes"] = window_types(self._manifest)
        cold = ColdStart(spec["spawned_at"])
        self._pool = DecodePool(decode_options(config), 1, config.dataset.clip_timeout_s)
        self._ready = ready = make_ready(config, spec, cold, Events(io.StringIO()), self._about)
        plan, sessions = ready.placement.memory, ready.sessions
        shards = [(int(first), int(end)) for first, end in spec["shards"]]
        clips = max(end - first for first, end in shards)
        self._pool.open(max(1, min(plan.decode_workers, -(-clips // _CLIPS_PER_DECODER))), plan.spare_slots,
                        sessions[0].rows_at_once)  # fmt: skip
        self._shards = shards
        self._lanes = [Lane(each.device_name[1:], each.embed_windows, each.in_flight) for each in sessions]
        metadata = file_metadata(config, sessions[0], ready.placement)
        labels = (spec["dataset"].get("part") or {}).get("labels") or labels_of(self._manifest)
        formats = make_formats(config.output, self._run_dir, metadata, config.frontend.hop_s, labels)
        self._entries = Entries()
        self._writer = _ShardWriter(self._run_dir, metadata, formats, ready.postprocess, journal=self._entries)
        self._about["metrics"] |= cold.metrics(time.time())
        self._about["identity"] = identity_of(sessions[0])
        self._about["file_metadata"] = metadata

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Embed the shards of one row."""
        reports = [self._embed(json.loads(numbers)) for numbers in batch["shards"]]
        return {"report": np.array([json.dumps(report) for report in reports], object)}

    def _embed(self, numbers: list[int]) -> dict[str, Any]:
        about = {key: value for key, value in self._about.items() if key != "warnings"}
        if self._error is not None:
            return {"actor": about, "error": self._error, "entries": []}
        config, spans = self._config, [self._shards[number] for number in numbers]
        engine = Engine(
            self._shards,
            read_clips(self._manifest, spans),
            self._pool,
            self._writer,
            stop_grace_s=config.engine.stop_grace_s,
            clips_left=sum(end - first for first, end in spans),
            on_skip=SkipLimit(config.dataset, self._spec["dataset"], 0),
        )
        began = time.time()
        self._entries.kept.clear()
        error = None
        try:
            engine.run(self._lanes)
        except Exception as failure:
            log.exception("shards %s failed", numbers)
            error = {"kind": failure_kind(failure), "message": failure_message(failure)}
        return {
            "actor": about,
            "error": error,
            "entries": [vars(entry) for entry in self._entries.kept],
            "began": began,
            "ended": time.time(),
            "figures": steady_metrics(engine),
        }


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
