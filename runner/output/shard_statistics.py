"""Statistics of a run's embeddings, shard by shard.

A shard's sums are metadata of the file with its rows of clips.parquet: whatever commits, revokes, downloads or merges
that file does so with its sums, so that none counts twice and none is missed.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.files import atomic
from runner.core.layout import RunLayout
from runner.output.spill import blocks
from runner.statistics.files import to_npz
from runner.statistics.moments import BLOCK_ROWS, EmbeddingStatistics
from runner.vggish.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from runner.output.rows import ClipRow

log = logging.getLogger(__name__)

_KEY = b"vggish_runner.statistics"


def statistics_of(rows: Iterable[ClipRow]) -> EmbeddingStatistics:
    """Return the statistics of clips' embeddings, the same bits however these came in parts."""
    statistics = EmbeddingStatistics(EMBEDDING_SIZE)
    parts = []
    for row in rows:
        parts.extend([row.embeddings] if isinstance(row.embeddings, np.ndarray) else row.embeddings)
    for block in blocks(tuple(parts), BLOCK_ROWS):
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

    def write(self, path: Path, about: Mapping[str, str]) -> None:
        """Write ``stats.npz``, or say why there is none.

        Args:
            path: of the file.
            about: what the embeddings are.
        """
        if self._missing:
            log.warning(
                "no %s: %d shards are of an earlier version, and their embeddings are not here; vggish-runner fad "
                "reads the run's embeddings instead",
                path.name,
                self._missing,
            )
            path.unlink(missing_ok=True)
            return
        with atomic(path) as temporary:
            temporary.write_bytes(to_npz(self._sums, about))


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
