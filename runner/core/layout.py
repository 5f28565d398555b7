"""Names of a run's files and folders, and of a sweep's: on disk, and as objects below a URL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload


class _Entry:
    """A file or folder of a run, as an attribute of ``RunLayout``."""

    def __init__(self, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, layout: None, owner: type[Any]) -> str: ...

    @overload
    def __get__(self, layout: RunLayout, owner: type[Any]) -> Path: ...

    def __get__(self, layout: RunLayout | None, owner: type[Any]) -> str | Path:
        """Return the name relative to the run's folder for the class, the path for a layout with a root."""
        return self._name if layout is None else layout.root / self._name


@dataclass(frozen=True)
class RunLayout:
    """Where the files of a run are, or of a sweep.

    ``RunLayout(root).plan`` is a path; ``RunLayout.plan`` is the same file's name relative to any run, with slashes:
    the journal's name of it, and its object's below a URL.

    Attributes:
        root: the run's folder.
    """

    root: Path

    # for the user
    embeddings = _Entry("embeddings")
    npz = _Entry("npz")
    npz_metadata = _Entry("npz/metadata.json")
    tfrecord = _Entry("tfrecord")
    tfrecord_metadata = _Entry("tfrecord/metadata.json")
    tfrecord_labels = _Entry("tfrecord/labels.csv")
    pooled = _Entry("pooled")
    clips = _Entry("clips.parquet")
    statistics = _Entry("stats.npz")  # mean and covariance of the embeddings
    result = _Entry("result.json")
    evaluation = _Entry("evaluation.json")  # the quality of the embeddings, by their labels
    log = _Entry("runner.log")
    batches = _Entry("batches.parquet")
    trace = _Entry("trace")
    plots = _Entry("plots")
    tracking = _Entry("tracking.json")  # the MLflow run of this folder
    sweep = _Entry("sweep.json")  # in a sweep's folder only
    merged = _Entry("merged.json")  # in a merged folder only
    merge_in_progress = _Entry("merge_in_progress.json")
    hydra = _Entry(".hydra")

    # for the runner: what resuming needs, in a folder of its own
    state = _Entry(".runner")
    plan = _Entry(".runner/plan.json")
    manifest = _Entry(".runner/manifest.parquet")
    spec = _Entry(".runner/spec.json")
    identity = _Entry(".runner/identity.json")
    attempts = _Entry(".runner/attempts.jsonl")
    journal = _Entry(".runner/journal.jsonl")
    clip_shards = _Entry(".runner/clips")  # each shard's rows of clips.parquet
    npz_lists = _Entry(".runner/npz")  # each shard's npz files, with size and SHA-256
    run_lock = _Entry(".runner/run.lock")
    lock_owner = _Entry(".runner/lock_owner.json")
    worker_lock = _Entry(".runner/worker.lock")
    commits = _Entry(".runner/commits")  # below a URL only: one object a shard
    lease = _Entry(".runner/lease.json")  # below a URL only


@dataclass(frozen=True)
class EmbeddingFormat:
    """A format of ``output.formats``.

    Attributes:
        folder: of its files, in the run's.
        metadata: its files that are of no shard.
        postprocess: the value of ``output.postprocess`` that it needs of a model with a projection; None: any.
        is_per_clip: whether it has a file a clip, instead of one a shard.
    """

    folder: str
    metadata: tuple[str, ...] = ()
    postprocess: str | None = None
    is_per_clip: bool = False


FORMATS = {
    "parquet": EmbeddingFormat(RunLayout.embeddings),
    "npz": EmbeddingFormat(RunLayout.npz, (RunLayout.npz_metadata,), is_per_clip=True),
    "tfrecord": EmbeddingFormat(
        RunLayout.tfrecord, (RunLayout.tfrecord_metadata, RunLayout.tfrecord_labels), "audioset"
    ),
}
"""The formats by name; ``output/formats.py`` creates their writers."""

FORMAT_FOLDERS = (*(each.folder for each in FORMATS.values()), RunLayout.pooled)
"""The folders of a run that hold embeddings, one a format."""

SHARD_FOLDERS = (*(each.folder for each in FORMATS.values() if not each.is_per_clip), RunLayout.pooled)
"""Those of them with a file a shard."""

FORMAT_METADATA = tuple(name for each in FORMATS.values() for name in each.metadata)
"""The files in them that are of no shard."""


def shard_name(shard: int, suffix: str) -> str:
    """Return the name of a shard's file in any of the folders with one a shard; ``suffix`` is .parquet and the like."""
    return f"part-{shard:05d}{suffix}"


CACHE = ".cache"
"""Folder below ``paths.models`` for what was computed once: the parity reference's answers, the calibration,
compiled programs."""
