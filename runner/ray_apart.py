"""The driver's side of decoding apart: embeddings, which come back in packets, are put to their clips and written.

The same code as the local engine's puts rows to clips and makes files.  A packet that comes twice, or of an attempt
that died half-way, harms nothing: jobs of different attempts are never put together, and a shard is written once.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.config import RunConfig, from_dict
from runner.decode import Segment
from runner.engine import writer_threads
from runner.gathering import Gathering
from runner.limits import SkipLimit
from runner.output import ClipRow, OpenShards, RunWriter
from runner.parts import make_spill, make_writer, postprocessor_of
from runner.ray_actor import Entries, shard_writer_kind
from runner.ray_cluster import Layout, actor_pool
from runner.ray_registry import Brief
from runner.ray_stages import EMBED_CALLS, DecodeShards, EmbedWindows, Note, from_table
from runner.taking_up import agree, pca_in_effect
from runner.vggish.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from runner.store_writer import StoreMirror

_SHARDS_AHEAD = 4
"""Complete shards that may wait for a writer before packets wait for one."""
_JOBS = 1 << 40
"""More than an attempt has."""


def reports(
    ray: Any,
    brief: Brief,
    work: Sequence[Sequence[int]],
    layout: Layout,
    figures: dict[str, float],
    mirror: StoreMirror | None = None,
) -> Iterator[dict[str, Any]]:
    """The reports of a run whose decoding is apart, with an entry for every shard that is on disk.

    Args:
        ray: connected.
        brief: what actors are made from.
        work: groups of shards.
        layout: what goes where.
        figures: ``write`` is added: seconds in which shards were written, a writer.
        mirror: puts shards into the run's object store, if it has one.
    """
    config = from_dict(brief.spec["config"])
    rows = [{"shards": json.dumps(list(group))} for group in work]
    packets = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            DecodeShards,
            fn_constructor_args=(brief, layout.decode_cpus, _batch(config, layout)),
            batch_size=1,
            compute=actor_pool(ray, min(layout.decoders, len(rows)), 1),
            num_cpus=layout.decode_cpus,
        )
        .map_batches(
            EmbedWindows,
            fn_constructor_args=(brief,),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=actor_pool(ray, layout.actors, EMBED_CALLS),
            num_cpus=layout.cpus,
            num_gpus=layout.gpus,
        )
    )
    assembly = Assembly(brief.spec, config, [number for group in work for number in group], mirror)
    try:
        for table in packets.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
            for payload, note in from_table(table):
                yield from assembly.take(payload, note)
        yield from assembly.finish()
    finally:
        assembly.close()
    figures["write"] = figures.get("write", 0.0) + assembly.write_s / assembly.writers


def _batch(config: RunConfig, layout: Layout) -> int:
    """Windows that an embedding actor is likely to take at once."""
    asked = config.memory.batch_size
    return asked if isinstance(asked, int) else config.memory.batch_size_by_device["gpu" if layout.gpus else "cpu"]


class Assembly:
    """Clips and shards under way.

    Args:
        spec: the run's.
        config: its configuration.
        left: the shards to be done.
        mirror: see ``reports``.
    """

    def __init__(
        self, spec: dict[str, Any], config: RunConfig, left: Sequence[int], mirror: StoreMirror | None = None
    ) -> None:
        self._spec, self._config, self._mirror = spec, config, mirror
        self._left = set(left)
        self._open_shards = OpenShards([(int(first), int(end)) for first, end in spec["shards"]])
        self._gathering = Gathering(make_spill(Path(spec["run_dir"]), config))
        self._taken: set[tuple[str, int]] = set()
        self._attempts: dict[str, int] = {}
        """What is added to the jobs of each attempt to tell them apart."""
        self._jobs: dict[int, set[int]] = {}
        """Of shards that are not complete, the jobs so far."""
        self._on_skip = SkipLimit(config.dataset, spec["dataset"], 0)
        self._entries = Entries()
        self._writer: RunWriter | None = None
        self.writers = writer_threads()
        self._threads = ThreadPoolExecutor(self.writers)
        self._writing: deque[Future[float]] = deque()
        self._actor: dict[str, Any] | None = None
        self.write_s = 0.0

    def take(self, payload: memoryview, note: Note) -> Iterator[dict[str, Any]]:
        """Take a packet; give its reports."""
        if (note.attempt, note.number) in self._taken:
            return
        self._taken.add((note.attempt, note.number))
        *before, last = note.reports
        yield from before
        if last["error"] or any(report["error"] for report in before):
            yield last | {"entries": self._taken_back()} if (last["error"] or {}).get("kind") == "parity" else last
            return
        self._actor = last["actor"]
        if self._writer is None:
            metadata, postprocess = last["actor"]["file_metadata"], postprocessor_of(self._config, self._spec)
            agree(Path(self._spec["run_dir"]), {**self._actor["identity"], **pca_in_effect(postprocess)})
            self._writer = make_writer(
                self._spec,
                self._config,
                metadata,
                postprocess,
                journal=self._entries,
                kind=shard_writer_kind(self._mirror),
            )
        embeddings = np.frombuffer(payload, np.float32).reshape(-1, EMBEDDING_SIZE).copy()  # frees Ray's memory
        ended = self._ended(embeddings, note)
        yield last | {
            "entries": self._written(_SHARDS_AHEAD),
            "clips": sum(row.status == "embedded" for row in ended),
            "examples": len(embeddings),
            "audio_s": sum(row.seconds for row in ended if row.status == "embedded"),
            "under_way": len(embeddings) - sum(row.examples for row in ended),
        }

    def finish(self) -> Iterator[dict[str, Any]]:
        """Wait for the writers; give a report of what they have written."""
        if self._actor is not None:
            entries = self._written(0)
            now = time.time()
            yield {"actor": self._actor, "error": None, "entries": entries, "began": now, "ended": now}

    def _taken_back(self) -> list[dict[str, Any]]:
        """Entries by which all that was written is to be done again: nobody knows which actor embedded what."""
        self._written(0)
        if self._writer is not None:
            self._writer.take_back(0)
        return [vars(entry) for entry in self._entries.take()]

    def close(self) -> None:
        """Begin no other file."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, embeddings: Any, note: Note) -> list[ClipRow]:
        gathering, shards = self._gathering, self._open_shards
        base = self._attempts.setdefault(note.attempt, len(self._attempts) * _JOBS)
        for job, clip in note.clips.items():
            shard = shards.of(clip.number)
            known = self._jobs.setdefault(shard, set()) if shard in self._left else None
            if known is not None and base + job not in known:
                known.add(base + job)
                gathering.register(base + job, clip)
        segments = [Segment(base + job, first, windows) for job, first, windows in note.segments]
        results = [result._replace(job=base + result.job) for result in note.results]
        found = []
        for row, clip in [*gathering.take_results(results), *gathering.take_rows(segments, embeddings)]:
            if shards.of(clip.number) in self._left:
                found.append(row)
                if complete := shards.add(clip.number, row):
                    self._complete(*complete)
        return found

    def _complete(self, shard: int, rows: list[ClipRow]) -> None:
        self._left.discard(shard)
        for job in self._jobs.pop(shard, ()):
            self._gathering.forget(job)
        for row in rows:
            if row.status == "skipped":
                self._on_skip(row)
        self._writing.append(self._threads.submit(self._write, shard, rows))

    def _write(self, shard: int, rows: list[ClipRow]) -> float:
        assert self._writer is not None
        start = time.perf_counter()
        self._writer.write_shard(shard, rows)
        return time.perf_counter() - start

    def _written(self, ahead: int) -> list[dict[str, Any]]:
        """The entries of shards written so far, once no more than ``ahead`` of them wait."""
        while self._writing and (len(self._writing) > ahead or self._writing[0].done()):
            self.write_s += self._writing.popleft().result()
        return [vars(entry) for entry in self._entries.take()]
