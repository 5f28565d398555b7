"""Read the embeddings of a run back: Parquet files in a folder or an object store."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.core.lookahead import map_ahead
from runner.core.paths import as_path, is_url
from runner.output.run_model import RunModel
from runner.output.state.plan_file import parse_plan
from runner.storage.driver import call_driver
from runner.storage.filesystem import open_store
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.core.readable import Json

R = TypeVar("R")

_TIMEOUT_S = 60.0

_THREADS = min(4, os.cpu_count() or 1)
"""Row groups decompressed at once; each is up to 32 MiB."""

_BLOCK_ROWS = 4096
"""Examples decoded at once: 2 MiB, which stay in a core's cache."""

_SHARD = re.compile(r"(^|/)part-\d+\.parquet$")


@dataclass(frozen=True)
class EmbeddedClip:
    """Consecutive examples of a clip.

    Attributes:
        name: As in ``clips.parquet``.
        label: Its label, if it has one.
        starts_s: Where each example starts in the file, seconds, float64 [n].
        embeddings: float32 [n, d].
    """

    name: str
    label: str | None
    starts_s: NDArray[np.float64]
    embeddings: NDArray[Any]


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

    def clip_ends(self) -> tuple[list[str], NDArray[np.int64]]:
        """Return the names of its clips in order, and one past the last row of each, int64 [clips].

        A clip that begins in one block may continue in the next.  Column ``clip`` must be among ``columns``.
        """
        names = self.columns["clip"].combine_chunks().dictionary_encode()
        codes = names.indices.to_numpy()
        ends = np.flatnonzero(np.diff(codes, append=-1)) + 1
        return names.dictionary.take(pa.array(codes[ends - 1])).to_pylist(), ends

    def clips(self) -> Iterator[EmbeddedClip]:
        """Yield its clips; ``columns`` must have ``clip``, ``start_s`` and ``label``."""
        names, ends = self.clip_ends()
        firsts = np.append(0, ends[:-1])[: len(ends)]
        labels = self.columns["label"].take(pa.array(firsts)).to_pylist()
        starts = self.columns["start_s"].to_numpy()
        for name, label, first, end in zip(names, labels, firsts.tolist(), ends.tolist(), strict=True):
            yield EmbeddedClip(name, label, starts[first:end], self.embeddings[first:end])


def as_array(values: pa.Array, dtype: type[np.generic]) -> NDArray[Any]:
    """Return numbers without nulls as an array that shares their memory.

    So does pyarrow's ``to_numpy``, which imports pandas for it, and that takes as long as a search of 200,000 examples.
    """
    size = np.dtype(dtype).itemsize
    return np.frombuffer(values.buffers()[1], dtype, len(values), values.offset * size)


class _Shard(NamedTuple):
    """A Parquet file: its path, and its bytes where it is an object's."""

    path: str
    content: pa.Buffer | None

    def open(self) -> pq.ParquetFile:
        try:
            source = self.path if self.content is None else self.content
            return pq.ParquetFile(source, read_dictionary=["clip"])
        except (OSError, pa.ArrowInvalid) as error:
            raise RunnerError(
                f"{self.path} cannot be read as Parquet ({error}): rerun the run's command to restore it"
            ) from error


class _RowGroup(NamedTuple):
    """A row group of a shard, and the number of its first example among those of all files."""

    shard: _Shard
    number: int
    first: int


def _rows_of(file: pq.ParquetFile, group: int, clip: str) -> NDArray[np.int64]:
    """Return the rows of a clip in a row group, which are consecutive, without its vectors."""
    first, found = 0, [np.empty(0, np.int64)]
    for names in file.read_row_group(group, ["clip"], use_threads=False)["clip"].chunks:
        known = names.dictionary.to_pylist()
        if clip in known:
            found.append(first + np.flatnonzero(as_array(names.indices, np.int32) == known.index(clip)))
        first += len(names)
    return np.concatenate(found)


class EmbeddingReader:
    """The examples of a run, shard by shard, in the order of its manifest.

    Args:
        location: the run's folder, its ``embeddings`` folder, one Parquet file, or a URL of any of these.
        output: of the model, whose vectors are read; None for the first.

    Attributes:
        location: As given.
        columns: The files' columns.
        metadata: Of the first file: model, checksum of the weights, precision, versions, all text.
        model: The model that made them.
        output: Its output that is read.

    Raises:
        RunnerError: there are no Parquet embeddings, they cannot be read, or the model has no such output.
    """

    def __init__(self, location: str, output: str | None = None) -> None:
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
        with self._shard(self._paths[0]).open() as file:
            self.columns = tuple(file.schema_arrow.names)
            self.metadata: Mapping[str, str] = {
                key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()
            }
        self.model = RunModel.from_metadata(self.metadata)
        self.output = self.model.output(output, location)

    def __len__(self) -> int:
        """Return the number of examples, from the files' footers."""
        with ThreadPoolExecutor(8) as threads:
            return sum(threads.map(self._count, self._paths))

    @property
    def speed(self) -> float:
        """The run's ``frontend.speed``: seconds in a file for each second of audio that the model heard."""
        return float(self.metadata.get("vggish_runner.frontend.speed", 1))

    @property
    def example_s(self) -> float:
        """How long an example is in its file, seconds."""
        return self.model.window_s * self.speed

    def blocks(self, columns: Sequence[str] = ("clip", "start_s"), *, embedding: str | None = None) -> Iterator[Block]:
        """Yield the examples in blocks of a row group, at most ``_BLOCK_ROWS`` each; a few groups are read ahead.

        Args:
            columns: further columns of each block.
            embedding: the column of the vectors; None for that of ``output``.
        """

        return self.map_blocks(lambda block: block, columns, embedding=embedding)

    def map_blocks(
        self, call: Callable[[Block], R], columns: Sequence[str] = ("clip", "start_s"), *, embedding: str | None = None
    ) -> Iterator[R]:
        """Yield the results of a function of each block, in their order; see ``blocks``.

        The function runs in the threads that decode, right after the block was decoded.
        """

        vectors = embedding or self.output.name
        names = [*columns, vectors]

        def read(group: _RowGroup) -> list[R]:
            first, results = group.first, []
            with group.shard.open() as file:
                # by one thread: the row groups are what is read at once
                batches = file.iter_batches(_BLOCK_ROWS, row_groups=[group.number], columns=names, use_threads=False)
                for batch in batches:
                    values = batch.column(vectors).flatten()
                    dtype = np.uint8 if pa.types.is_uint8(values.type) else np.float32
                    rows = as_array(values, dtype).reshape(len(batch), -1)
                    results.append(call(Block(first, pa.Table.from_batches([batch.drop_columns([vectors])]), rows)))
                    first += len(rows)
            return results

        yield from itertools.chain.from_iterable(map_ahead(read, self._groups(), _THREADS, 2 * _THREADS))

    def clips(self, embedding: str | None = None) -> Iterator[EmbeddedClip]:
        """Yield the embedded clips whole, in the order of the run; see ``blocks``."""
        begun: EmbeddedClip | None = None
        for block in self.blocks(("clip", "start_s", "label"), embedding=embedding):
            for clip in block.clips():
                if begun and begun.name == clip.name:  # continued from the block before
                    begun = replace(
                        begun,
                        starts_s=np.concatenate([begun.starts_s, clip.starts_s]),
                        embeddings=np.concatenate([begun.embeddings, clip.embeddings]),
                    )
                    continue
                if begun:
                    yield begun
                begun = clip
        if begun:
            yield begun

    def clip(self, name: str) -> EmbeddedClip | None:
        """Return a clip; None where the run has no examples of it.  Other row groups' vectors are not decoded."""

        def read(group: _RowGroup) -> pa.Table | None:
            with group.shard.open() as file:
                rows = _rows_of(file, group.number, name)
                if not len(rows):
                    return None
                columns = ["start_s", "label", self.output.name]
                return file.read_row_group(group.number, columns, use_threads=False).slice(rows[0], len(rows))

        tables = []
        for table in map_ahead(read, self._groups(), _THREADS, 2 * _THREADS):
            if table is not None:
                tables.append(table)
            elif tables:
                break  # a clip's examples are consecutive
        if not tables:
            return None
        rows = pa.concat_tables(tables).combine_chunks()
        starts, vectors = rows["start_s"].chunk(0), rows[self.output.name].chunk(0).flatten()
        embeddings = as_array(vectors, np.float32).reshape(len(rows), -1)
        return EmbeddedClip(name, rows["label"][0].as_py(), as_array(starts, np.float64), embeddings)

    def shards(self) -> list[tuple[str, int]]:
        """Return the name and the size in bytes of each file: they change when a clip is embedded again."""
        return [(path.rsplit("/", 1)[-1], int(self._filesystem.size(path))) for path in self._paths]

    def settings(self) -> Mapping[str, Json]:
        """Return the settings that decide the run's numbers, by config key.

        Raises:
            RunnerError: the location is no run's, or has no plan any more.
        """
        path = f"{self._root}/{RunLayout.plan}"
        return parse_plan(path, self._read(path)).settings

    def dataset_root(self) -> str:
        """Return the folder or URL of the run's recordings; empty where its settings are gone or name none."""
        try:
            return str(self.settings().get("dataset.root") or "")
        except RunnerError:
            return ""

    def _groups(self) -> Iterator[_RowGroup]:
        """Yield the row groups; an object is downloaded whole while the one before it is read."""
        first = 0
        for shard in map_ahead(self._shard, self._paths, 1, 2):
            with shard.open() as file:
                rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            for number, count in enumerate(rows):
                yield _RowGroup(shard, number, first)
                first += count

    def _list(self) -> list[str]:
        if self._root.endswith(".parquet"):
            return [self._root]
        for folder in (f"{self._root}/{RunLayout.embeddings}", self._root):
            paths = [path for path in self._ls(folder) if _SHARD.search(path)]
            if paths:
                return sorted(paths, key=lambda path: (len(path), path))
        return []

    def _ls(self, folder: str) -> list[str]:
        try:
            paths: list[str] = with_retries(
                lambda: call_driver(self._filesystem, "ls", folder, detail=False), _TIMEOUT_S
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        return paths

    def _count(self, path: str) -> int:
        with self._shard(path).open() as file:
            return int(file.metadata.num_rows)

    def _shard(self, path: str) -> _Shard:
        return _Shard(path, pa.py_buffer(self._read(path)) if self._is_remote else None)

    def _read(self, path: str) -> bytes:
        try:
            content: bytes = with_retries(lambda: call_driver(self._filesystem, "cat_file", path), _TIMEOUT_S)
        except OSError as error:
            raise RunnerError(f"{path} cannot be read ({error}): check the address and your credentials") from error
        return content
