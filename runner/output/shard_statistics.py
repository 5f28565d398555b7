"""Statistics of a run's embeddings, shard by shard.

A shard's sums are metadata of the file with its rows of clips.parquet: whatever commits, revokes, downloads or merges
that file does so with its sums, so that none counts twice and none is missed.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.files import atomic, remove
from runner.core.layout import RunLayout
from runner.output.spill import blocks, chunks_of
from runner.statistics.files import to_npz
from runner.statistics.moments import BLOCK_ROWS, EmbeddingStatistics
from runner.vggish.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from runner.output.rows import ClipRow

log = logging.getLogger(__name__)

_KEY_PREFIX = "vggish_runner."
"""The beginning of this project's keys in a Parquet file's metadata."""

_KEY = f"{_KEY_PREFIX}statistics".encode()


def statistics_of(rows: Iterable[ClipRow]) -> EmbeddingStatistics:
    """Return the statistics of clips' embeddings, the same bits however these came in parts."""
    statistics = EmbeddingStatistics(EMBEDDING_SIZE)
    for block in blocks([chunk for row in rows for chunk in chunks_of(row.embeddings)], BLOCK_ROWS):
        statistics.add(block)
    return statistics


def write_clip_rows(path: Path, clips: pa.Table, statistics: EmbeddingStatistics) -> None:
    """Write a shard's rows of clips.parquet with its statistics."""
    encoded = base64.b64encode(statistics.to_vector().astype("<f8").tobytes())
    with pq.ParquetWriter(path, clips.schema, compression="zstd") as file:
        file.write_table(clips)
        file.add_key_value_metadata({_KEY: encoded})  # beside the schema, whose metadata are stored twice


def read_clip_rows(path: Path) -> tuple[pa.Table, EmbeddingStatistics | None]:
    """Read a shard's rows of clips.parquet and its statistics; None for those of an earlier version."""
    with pq.ParquetFile(path) as file:
        clips, encoded = file.read(), (file.metadata.metadata or {}).get(_KEY)
    try:
        return clips, encoded and EmbeddingStatistics.from_vector(np.frombuffer(base64.b64decode(encoded), "<f8"))
    except (ValueError, binascii.Error):
        return clips, None


class RunStatistics:
    """The statistics of a run, from its shards."""

    def __init__(self) -> None:
        self._sums = EmbeddingStatistics(EMBEDDING_SIZE)
        self._missing = 0

    def add(self, statistics: EmbeddingStatistics | None, files: Iterable[Path] = ()) -> None:
        """Add a shard.

        Args:
            statistics: as ``read_clip_rows`` gives them.
            files: its files, of which the Parquet one is read where a shard of an earlier version has no statistics.
        """
        statistics = statistics or _from_parquet(files)
        if statistics is None:
            self._missing += 1
        else:
            self._sums.merge(statistics)

    def to_npz(self, clips: pa.Schema) -> bytes | None:
        """Return the content of ``stats.npz``; None, with a warning, where a shard's statistics are missing.

        Args:
            clips: of clips.parquet, whose metadata say what the embeddings are.
        """
        if self._missing:
            log.warning(
                "no %s: %d shards are of an earlier version, and their embeddings are not here; vggish-runner fad "
                "reads the run's embeddings instead",
                RunLayout.statistics,
                self._missing,
            )
            return None
        metadata = {key.decode(): value.decode() for key, value in (clips.metadata or {}).items()}
        about = {key.removeprefix(_KEY_PREFIX): value for key, value in metadata.items() if key.startswith(_KEY_PREFIX)}
        return to_npz(self._sums, about)

    def write(self, folder: Path, clips: pa.Schema) -> None:
        """Write ``stats.npz`` into a run's folder; remove one of before where there is none now."""
        path = RunLayout(folder).statistics
        if (data := self.to_npz(clips)) is None:
            remove(path)
            return
        with atomic(path) as temporary:
            temporary.write_bytes(data)


def _from_parquet(files: Iterable[Path]) -> EmbeddingStatistics | None:
    for path in files:
        if path.parent.name == RunLayout.embeddings and path.exists():
            statistics = EmbeddingStatistics(EMBEDDING_SIZE)
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["embedding"]):
                    rows = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                    statistics.add(rows.reshape(-1, EMBEDDING_SIZE))
            return statistics
    return None
