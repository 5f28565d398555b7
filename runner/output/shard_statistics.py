"""Statistics of a run's first output, shard by shard.

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
from runner.output.run_model import CLASSES, METADATA_PREFIX, RunModel
from runner.output.spill import blocks, chunks_of
from runner.statistics.files import to_npz
from runner.statistics.moments import EmbeddingStatistics

if TYPE_CHECKING:
    from runner.core.model_spec import Output
    from runner.output.rows import ClipRow, EmbeddingInfo

log = logging.getLogger(__name__)

MAX_WIDTH = 1024
"""Values of the widest output with statistics: their sums take 6 MB a shard, and a million products an example."""

_KEY = f"{METADATA_PREFIX}statistics".encode()


def statistics_of(rows: Iterable[ClipRow], info: EmbeddingInfo) -> EmbeddingStatistics | None:
    """Return the statistics of clips' first output, the same bits however it came in parts; None if it is too wide."""
    width = info.outputs[0].width
    if width > MAX_WIDTH:
        return None
    statistics = EmbeddingStatistics(width)
    for block in blocks([chunk for row in rows for chunk in chunks_of(row.embeddings)], info.block_rows):
        statistics.add(info.first(block))
    return statistics


def write_clip_rows(path: Path, clips: pa.Table, statistics: EmbeddingStatistics | None) -> None:
    """Write a shard's rows of clips.parquet with its statistics, if it has any."""
    with pq.ParquetWriter(path, clips.schema, compression="zstd") as file:
        file.write_table(clips)
        if statistics is not None:
            encoded = base64.b64encode(statistics.to_vector().astype("<f8").tobytes())
            file.add_key_value_metadata({_KEY: encoded})  # beside the schema, whose metadata are stored twice


def read_clip_rows(path: Path) -> tuple[pa.Table, EmbeddingStatistics | None]:
    """Read a shard's rows of clips.parquet and its statistics; None for those without, as of an earlier version."""
    with pq.ParquetFile(path) as file:
        clips, encoded = file.read(), (file.metadata.metadata or {}).get(_KEY)
    try:
        return clips, encoded and EmbeddingStatistics.from_vector(np.frombuffer(base64.b64decode(encoded), "<f8"))
    except (ValueError, binascii.Error):
        return clips, None


class RunStatistics:
    """The statistics of a run's first output, from its shards.

    Args:
        clips: of clips.parquet, whose metadata describe the embeddings.
    """

    def __init__(self, clips: pa.Schema) -> None:
        metadata = {key.decode(): value.decode() for key, value in (clips.metadata or {}).items()}
        self._output = RunModel.from_metadata(metadata).outputs[0]
        self._about = {
            own: value
            for key, value in metadata.items()
            if key.startswith(METADATA_PREFIX) and not (own := key.removeprefix(METADATA_PREFIX)).startswith(CLASSES)
        }
        width = self._output.width
        self._sums = EmbeddingStatistics(width) if width <= MAX_WIDTH else None
        self._missing = 0

    def add(self, statistics: EmbeddingStatistics | None, files: Iterable[Path] = ()) -> None:
        """Add a shard.

        Args:
            statistics: as ``read_clip_rows`` gives them.
            files: its files, of which the Parquet one is read where a shard of an earlier version has no statistics.
        """
        if self._sums is None:
            return
        statistics = statistics or _from_parquet(files, self._output)
        if statistics is None:
            self._missing += 1
        else:
            self._sums.merge(statistics)

    def to_npz(self) -> bytes | None:
        """Return the content of ``stats.npz``; None where the output is too wide, or a shard's statistics are missing.

        The second is a warning.
        """
        if self._sums is None:
            return None
        if self._missing:
            log.warning(
                "no %s: %d shards are of an earlier version, and their embeddings are not here; vggish-runner fad "
                "reads the run's embeddings instead",
                RunLayout.statistics,
                self._missing,
            )
            return None
        return to_npz(self._sums, self._about)

    def write(self, folder: Path) -> None:
        """Write ``stats.npz`` into a run's folder; remove one of before where there is none now."""
        path = RunLayout(folder).statistics
        if (data := self.to_npz()) is None:
            remove(path)
            return
        with atomic(path) as temporary:
            temporary.write_bytes(data)


def _from_parquet(files: Iterable[Path], output: Output) -> EmbeddingStatistics | None:
    for path in files:
        if path.parent.name == RunLayout.embeddings and path.exists():
            statistics = EmbeddingStatistics(output.width)
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=[output.name]):
                    rows = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                    statistics.add(rows.reshape(-1, output.width))
            return statistics
    return None
