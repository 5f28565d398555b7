"""Read the embeddings of a run back: Parquet files in a folder or an object store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.core.paths import as_path, is_url
from runner.storage.filesystem import open_store
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Block:
    """Consecutive examples of a shard.

    Attributes:
        first: The number of the first one among the examples of all files, in their order.
        columns: The columns asked for, but not the embeddings.
        embeddings: float32 [n, d]; a view of the file's own buffer.
    """

    first: int
    columns: pa.Table
    embeddings: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.embeddings)


class EmbeddingReader:
    """The examples of a run, shard by shard, in the order of its manifest.

    Args:
        location: the run's folder, its ``embeddings`` folder, one Parquet file, or a URL of any of these.

    Attributes:
        location: As given.
        metadata: Of the first file: model, checksum of the weights, precision, versions, all text.

    Raises:
        RunnerError: there are no Parquet embeddings, or they cannot be read.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        self._is_remote = is_url(self.location)
        if self._is_remote:
            self._filesystem, self._root = open_store("RUN", self.location)
        else:
            import fsspec

            self._filesystem, self._root = fsspec.filesystem("file"), as_path(self.location)
        self._paths = self._list()
        if not self._paths:
            raise RunnerError(
                f"{location} has no Parquet embeddings (embeddings/part-*.parquet): name the folder or URL of a run "
                "whose output.formats include parquet"
            )
        with self._open(self._paths[0]) as file:
            self.metadata: Mapping[str, str] = {
                key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()
            }

    def __len__(self) -> int:
        """Return the number of examples, from the files' footers."""
        with ThreadPoolExecutor(8) as threads:
            return sum(threads.map(self._count, self._paths))

    def blocks(self, columns: Sequence[str] = ("clip", "start_s"), *, embedding: str = "embedding") -> Iterator[Block]:
        """Yield the examples in blocks of a row group, read ahead by one.

        Args:
            columns: further columns of each block.
            embedding: the column of the vectors.
        """
        first = 0
        with ThreadPoolExecutor(1) as reader:
            groups = self._groups([*columns, embedding])
            coming = reader.submit(next, groups, None)
            while (table := coming.result()) is not None:
                coming = reader.submit(next, groups, None)
                vectors = table[embedding].combine_chunks()
                rows = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
                yield Block(first, table.drop_columns([embedding]), rows)
                first += len(rows)

    def settings(self) -> Mapping[str, Any]:
        """Return the settings that decide the run's numbers, by config key.

        Raises:
            RunnerError: the location is no run's, or has no plan any more.
        """
        content: bytes = self._retried(self._filesystem.cat_file, f"{self._root}/{RunLayout.plan}")
        settings: dict[str, Any] = json.loads(content)["deciding"]
        return settings

    def _groups(self, columns: list[str]) -> Iterator[pa.Table]:
        for path in self._paths:
            with self._open(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns=columns)

    def _list(self) -> list[str]:
        if self._root.endswith(".parquet"):
            return [self._root]
        for folder in (f"{self._root}/{RunLayout.embeddings}", self._root):
            paths: list[str] = self._retried(self._filesystem.glob, f"{folder}/part-*.parquet")
            if paths:
                return sorted(paths)
        return []

    def _count(self, path: str) -> int:
        with self._open(path) as file:
            return int(file.metadata.num_rows)

    def _open(self, path: str) -> pq.ParquetFile:
        try:
            if self._is_remote:
                return pq.ParquetFile(pa.BufferReader(self._retried(self._filesystem.cat_file, path)))
            return pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise RunnerError(
                f"{path} cannot be read as Parquet ({error}): rerun the run's command to restore it"
            ) from error

    def _retried(self, call: Any, path: str) -> Any:
        try:
            return with_retries(lambda: call(path), _TIMEOUT_S)
        except OSError as error:
            raise RunnerError(f"{path} cannot be read ({error}): check the address and your credentials") from error
