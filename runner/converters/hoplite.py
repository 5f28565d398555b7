"""A run as a Perch Hoplite database: the vector store of bioacoustics (pip's ``perch-hoplite``).

A database is a folder with ``hoplite.sqlite`` (deployments, recordings, windows, annotations) and ``usearch.index``
(an HNSW index of float16 vectors under inner product, keyed by ``windows.id``).  The format is that of
``perch_hoplite/db/sqlite_usearch_impl.py`` 1.0.2.  Rows are written in transactions and the index is saved next to
them, so that a conversion that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.errors import RunnerError
from runner.dataset.clip_names import split_range
from runner.dataset.recorded_at import recorded_at

if TYPE_CHECKING:
    from runner.core.readable import Json
    from runner.output.reader import EmbeddedClip, EmbeddingReader

_SQLITE, _INDEX = "hoplite.sqlite", "usearch.index"

_SOURCE = "vggish_runner_source"
"""The key of hoplite_metadata under which the run is noted whose rows these are."""

_SAVE_ROWS = 200_000
"""Windows after which rows and index are saved."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)

_POSITIVE = 1

_HUB_MODELS = {"VGGish": ("google/vggish", -1, -1), "YAMNet": ("google/yamnet", 1, 0)}
"""Models that Hoplite loads from TensorFlow Hub: name there, and the indices of embedding and scores in its outputs."""

_TABLES = """
CREATE TABLE hoplite_metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE deployments (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, project TEXT NOT NULL, latitude REAL, longitude REAL,
  UNIQUE (name, project));
CREATE TABLE recordings (
  id INTEGER PRIMARY KEY AUTOINCREMENT, filename TEXT NOT NULL, datetime TEXT,
  deployment_id INTEGER REFERENCES deployments(id) ON DELETE CASCADE,
  UNIQUE (id, deployment_id), UNIQUE (filename, deployment_id));
CREATE TABLE windows (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  recording_id INTEGER NOT NULL REFERENCES recordings(id) ON DELETE CASCADE, offsets FLOAT_LIST NOT NULL,
  UNIQUE (id, recording_id, offsets));
CREATE TABLE annotations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  recording_id INTEGER NOT NULL REFERENCES recordings(id) ON DELETE CASCADE, offsets FLOAT_LIST NOT NULL,
  label TEXT NOT NULL, label_type INTEGER NOT NULL, provenance TEXT NOT NULL, UNIQUE (id, recording_id, offsets));
CREATE INDEX idx_annotations ON annotations(recording_id, offsets, label, label_type, provenance);
CREATE INDEX idx_labels ON annotations(label, label_type, provenance);
CREATE INDEX idx_recordings_deployment_id ON recordings(deployment_id);
CREATE INDEX idx_windows_recording_id ON windows(recording_id);
"""


def export_hoplite(
    reader: EmbeddingReader, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Write a run as a Hoplite database; goes on with one that was begun, and leaves a complete one as it is.

    Args:
        reader: of the run.
        folder: of the database.
        progress: called with the windows done and the windows in all.

    Returns:
        The number of windows in the database.

    Raises:
        RunnerError: usearch is not installed, or the folder holds another database or one of another state of the run.
    """
    index_type = _usearch()
    folder.mkdir(parents=True, exist_ok=True)
    total = len(reader)
    with closing(sqlite3.connect(folder / _SQLITE)) as database:
        deployment = _prepare(database, reader, folder)
        index = _open_index(index_type, folder, reader.output.width)
        done = min(_count(database), len(index))
        if done == total:
            return total
        unsaved = done
        for clip, first in _numbered(reader):
            last = first + len(clip.embeddings)
            if last <= done:
                continue
            _insert_rows(database, deployment, clip, first, reader.example_s)
            keys = np.arange(first + 1, last + 1, dtype=np.uint64)
            new = np.flatnonzero(~np.atleast_1d(index.contains(keys)))
            if len(new):
                vectors = np.clip(clip.embeddings[new], -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
                index.add(keys[new], vectors, threads=0)
            if last - unsaved >= _SAVE_ROWS or last == total:
                _save(database, index, folder)
                unsaved = last
            progress(last, total)
    return total


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise RunnerError(
            "a Hoplite database needs the package usearch: pip install 'vggish-runner[hoplite]'"
        ) from error
    return Index


def _open_index(index_type: Any, folder: Path, width: int) -> Any:
    """Return the index as it was saved, or a new one with Hoplite's own settings."""
    index = index_type(ndim=width, metric="ip", dtype="f16", expansion_add=256, expansion_search=128)
    if (folder / _INDEX).exists():
        index.load(str(folder / _INDEX))
    return index


def _save(database: sqlite3.Connection, index: Any, folder: Path) -> None:
    """Save rows, then the index: rows without a vector get theirs when the conversion goes on."""
    database.commit()
    temporary = folder / f"{_INDEX}.tmp"
    index.save(str(temporary))
    os.replace(temporary, folder / _INDEX)


def _prepare(database: sqlite3.Connection, reader: EmbeddingReader, folder: Path) -> int:
    """Create the tables, or check that they are of this run; return the id of the run's deployment."""
    source = {"location": reader.location, "shards": reader.shards()}
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "windows" in tables:
        row = database.execute("SELECT value FROM hoplite_metadata WHERE key = ?", (_SOURCE,)).fetchone()
        if row is None or json.loads(row[0])["shards"] != [list(shard) for shard in source["shards"]]:
            raise RunnerError(f"{folder} holds a database of other embeddings: name a new folder for this run's")
        return int(database.execute("SELECT min(id) FROM deployments").fetchone()[0])
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(_TABLES)
    metadata = {**_metadata(reader), _SOURCE: source}
    rows = [(key, json.dumps(value)) for key, value in metadata.items()]
    database.executemany("INSERT INTO hoplite_metadata VALUES (?, ?)", rows)
    name = Path(reader.dataset_root() or reader.location).name
    cursor = database.execute("INSERT INTO deployments (name, project) VALUES (?, 'vggish-runner')", (name,))
    database.commit()
    return int(cursor.lastrowid or 0)


def _metadata(reader: EmbeddingReader) -> dict[str, Json]:
    """Return the metadata by which Hoplite's notebooks open the index and find the audio."""
    return {
        "usearch_config": {
            "embedding_dim": reader.output.width,
            "dtype": "float16",
            "metric_name": "IP",
            "expansion_add": 256,
            "expansion_search": 128,
        },
        **({"model_config": model} if (model := _hub_model(reader)) else {}),
        "audio_sources": {
            "audio_globs": [
                {
                    "dataset_name": "vggish-runner",
                    "base_path": reader.dataset_root(),
                    "file_glob": "**/*",
                    "min_audio_len_s": 0.0,
                    "target_sample_rate_hz": reader.model.sample_rate,
                    "shard_len_s": None,
                }
            ]
        },
    }


def _hub_model(reader: EmbeddingReader) -> dict[str, Json] | None:
    """Return how Hoplite loads the run's model from TensorFlow Hub, to embed queries; None for a model it has not."""
    if reader.model.title not in _HUB_MODELS or reader.output != reader.model.outputs[0]:
        return None
    url, embedding, logits = _HUB_MODELS[reader.model.title]
    loaded: dict[str, Json] = {"sample_rate": reader.model.sample_rate, "model_url": url}
    loaded |= {"embedding_index": embedding, "logits_index": logits}
    return {"model_key": "tfhub_model", "embedding_dim": reader.output.width, "model_config": loaded}


def _numbered(reader: EmbeddingReader) -> Iterator[tuple[EmbeddedClip, int]]:
    """Yield each clip with the number of examples before it."""
    first = 0
    for clip in reader.clips():
        yield clip, first
        first += len(clip.embeddings)


def _insert_rows(
    database: sqlite3.Connection, deployment: int, clip: EmbeddedClip, first: int, example_s: float
) -> None:
    """Insert a clip's recording, windows and label, unless they are there."""
    filename, _, _ = split_range(clip.name)
    when = recorded_at(filename)
    database.execute(
        "INSERT OR IGNORE INTO recordings (filename, datetime, deployment_id) VALUES (?, ?, ?)",
        (filename, when and when.isoformat(), deployment),
    )
    query = "SELECT id FROM recordings WHERE filename = ? AND deployment_id = ?"
    (recording,) = database.execute(query, (filename, deployment)).fetchone()
    ends = clip.starts_s + example_s
    offsets = np.stack([clip.starts_s, ends], axis=1).astype("<f8")
    rows = [(first + 1 + row, recording, pair.tobytes()) for row, pair in enumerate(offsets)]
    inserted = database.executemany("INSERT OR IGNORE INTO windows VALUES (?, ?, ?)", rows).rowcount
    if clip.label is not None and inserted == len(rows):
        whole = np.array([offsets[0, 0], offsets[-1, 1]], "<f8").tobytes()
        database.execute(
            "INSERT INTO annotations (recording_id, offsets, label, label_type, provenance) VALUES (?, ?, ?, ?, ?)",
            (recording, whole, clip.label, _POSITIVE, "vggish-runner"),
        )


def _count(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM windows").fetchone()[0])
