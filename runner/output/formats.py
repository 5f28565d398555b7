"""The forms in which embeddings are written: Parquet, npz files, AudioSet's TFRecords.  One writer each.

Each takes a complete shard and has it on disk, whole, when ``write`` returns.  A clip's embeddings are read in blocks,
so that what a writer holds does not grow with the length of a clip (but for TFRecords, whose record is a whole clip:
130 bytes an example).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.files import atomic, make_folder, write_atomic
from runner.core.layout import EMBEDDINGS, NPZ, NPZ_FILES, STATE
from runner.output.spill import blocks
from runner.output.state.journal import size_and_sha256
from runner.vggish.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.rows import ClipRow

_NAME_BYTES = 240
"""Longest file name written: 255 is the limit, and temporary names are longer."""

_PATH_BYTES = 1024
"""Longest path of a clip that is kept: systems take 4,096 bytes at most, of which the run's folder has some."""

_HASHED = re.compile(r"~[0-9a-f]{24}\Z")
"""The end of a name that was made for a clip whose own would not do."""

_TAKEN = re.compile(r"\.npz\Z|\.tmp\Z|\Ametadata\.json\Z", re.IGNORECASE)
"""Names of files that a run has: no folder may have one."""

_NO_NAME = re.compile(r'[<>:"|?*\\\x00-\x1f]')
"""What Windows takes in no name."""

_WRITERS = 8

_GROUP_ROWS = 65_536
"""Examples of a Parquet row group, and what is held of a shard while it is written (32 MiB)."""

_EXTRA_TYPES: dict[str, np.dtype[Any]] = {"embedding_pca": np.dtype(np.float32), "embedding_u8": np.dtype(np.uint8)}


class ShardFormat(Protocol):
    """A form of the embeddings."""

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write a complete shard, its clips in manifest order; on disk when this returns. The shard's own files."""
        ...


def embedding_schema(extra: str | None = None) -> pa.Schema:
    """The columns of an embeddings file; ``extra`` is the post-processed one (embedding_pca, embedding_u8)."""
    fields = [
        ("clip", pa.string()),
        ("example", pa.int32()),
        ("start_s", pa.float64()),
        ("padded", pa.bool_()),
        ("label", pa.string()),
        ("embedding", pa.list_(pa.float32(), EMBEDDING_SIZE)),
    ]
    if extra:
        fields.append((extra, pa.list_(pa.from_numpy_dtype(_EXTRA_TYPES[extra]), EMBEDDING_SIZE)))
    return pa.schema(fields)


class Extra(NamedTuple):
    """The post-processed form beside the embeddings: its column, and what makes [n, 128] of float32 [n, 128]."""

    column: str
    process: Callable[[NDArray[np.float32]], NDArray[Any]]


class Group(NamedTuple):
    """Blocks of clips' embeddings: whose each is, which example it begins with, and float32 [n, 128]."""

    rows: list[ClipRow]
    firsts: list[int]
    embeddings: list[NDArray[np.float32]]


def row_groups(rows: Iterable[ClipRow], examples: int = _GROUP_ROWS) -> Iterator[Group]:
    """The embeddings of clips in groups of about so many examples, cut alike however they came in parts."""
    group = Group([], [], [])
    count = 0
    for row in rows:
        first = 0
        for block in blocks(row.embeddings):
            group.rows.append(row)
            group.firsts.append(first)
            group.embeddings.append(block)
            first += len(block)
            if count + first >= examples:
                yield group
                group, count = Group([], [], []), -first
        count += first
    if group.rows:
        yield group


class ParquetShards:
    """``embeddings/part-NNNNN.parquet``: a row an example.

    Args:
        folder: the run's folder.
        metadata: what each file says of itself.
        hop_s: seconds between examples.
        compression: Parquet codec, or ``none``.
        extra: the post-processed column; None for none.
    """

    def __init__(
        self, folder: Path, metadata: Mapping[str, str], hop_s: float, compression: str, extra: Extra | None = None
    ) -> None:
        self._folder = folder / EMBEDDINGS
        make_folder(self._folder)
        self._schema = embedding_schema(extra and extra.column).with_metadata(parquet_metadata(metadata))
        self._hop_s = hop_s
        self._compression = compression
        self._extra = extra

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write the shard's file, and give it."""
        path = self._folder / f"part-{shard:05d}.parquet"
        with (
            atomic(path) as temporary,
            pq.ParquetWriter(
                temporary, self._schema, compression=self._compression, use_dictionary=["clip", "label"]
            ) as file,
        ):
            for group in row_groups(rows):
                file.write_table(embedding_table(group, self._hop_s, self._extra))
        return [path]


class NpzFiles:
    """``npz/PATH.npz``, a file an embedded clip: ``embedding``, ``start_s``, ``padded``, ``clip``, ``label``.

    ``start_s`` is float64 [n]; ``label`` is an empty string where there is none; the post-processed form, if asked
    for, has its own array. ``npz/metadata.json`` says what the embeddings are.  The journal, for which they are too
    many, has a list of a shard's files instead, with their sizes and SHA-256.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, str], hop_s: float, extra: Extra | None = None) -> None:
        self._folder = folder / NPZ
        make_folder(self._folder)
        self._lists = folder / STATE / NPZ_FILES
        make_folder(self._lists)
        self._hop_s = hop_s
        self._extra = extra
        write_atomic(self._folder / "metadata.json", json.dumps(metadata, indent=2))

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write the files of the shard's clips, several at once: each is flushed to disk. The list of them."""
        with ThreadPoolExecutor(_WRITERS) as threads:
            described = dict(threads.map(self._write_clip, (row for row in rows if row.examples)))
        path = self._lists / f"part-{shard:05d}.json"
        before = path.read_bytes() if path.exists() else b"{}"
        write_atomic(path, json.dumps(described))
        self._remove(before, described.keys())
        return [path]

    def _remove(self, before: bytes, now: Collection[str]) -> None:
        """Remove the files that an earlier time gave clips of the shard, and this one did not: they are skipped now."""
        with contextlib.suppress(ValueError, AttributeError):  # of a list that is damaged nothing is known
            for name in json.loads(before).keys() - set(now):
                (self._folder / name).unlink(missing_ok=True)

    def _write_clip(self, row: ClipRow) -> tuple[str, tuple[int, str]]:
        name = npz_path(row.clip)
        path = self._folder / name
        make_folder(path.parent)
        with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            self._add(file, "embedding", np.dtype(np.float32), blocks(row.embeddings), row.examples)
            if self._extra:
                processed = map(self._extra.process, blocks(row.embeddings))
                self._add(file, self._extra.column, _EXTRA_TYPES[self._extra.column], processed, row.examples)
            small = {
                "start_s": row.start_s + self._hop_s * np.arange(row.examples),
                "padded": np.array(row.padded),
                "clip": np.array(row.clip),
                "label": np.array(row.label or ""),
            }
            for key, array in small.items():
                with _member(file, key) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        return name.as_posix(), size_and_sha256(path)

    @staticmethod
    def _add(
        file: zipfile.ZipFile, name: str, kind: np.dtype[Any], arrays: Iterable[NDArray[Any]], examples: int
    ) -> None:
        """An array [examples, 128] that comes in blocks, as ``numpy.savez`` would write it whole."""
        with _member(file, name) as member:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
            np.lib.format.write_array_header_1_0(member, header | {"shape": (examples, EMBEDDING_SIZE)})
            for array in arrays:
                member.write(np.ascontiguousarray(array, kind).data)


def _member(file: zipfile.ZipFile, name: str) -> IO[bytes]:
    return file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # without the time: the same bytes again


def embedding_table(group: Group, hop_s: float, extra: Extra | None = None) -> pa.Table:
    """Embeddings of clips as a table of ``embedding_schema``, a row an example."""
    rows, firsts, embeddings = group.rows, np.array(group.firsts, np.int64), group.embeddings
    counts = np.fromiter(map(len, embeddings), np.int64, len(rows))
    total, ends = int(counts.sum()), np.cumsum(counts)
    which = np.repeat(np.arange(len(rows)), counts)
    example = np.arange(total) - np.repeat(ends - counts - firsts, counts)
    starts = np.repeat(np.array([row.start_s for row in rows]), counts) + example * hop_s
    padded = np.zeros(total, bool)
    is_last = firsts + counts == [row.examples for row in rows]
    padded[ends - 1] = is_last & [row.padded for row in rows]
    columns = [
        pa.array([row.clip for row in rows], pa.string()).take(pa.array(which)),
        pa.array(example.astype(np.int32)),
        pa.array(starts.astype(np.float64)),
        pa.array(padded),
        pa.array([row.label for row in rows], pa.string()).take(pa.array(which)),
        _vectors(embeddings, np.dtype(np.float32)),
    ]
    if extra:
        columns.append(_vectors([extra.process(block) for block in embeddings], _EXTRA_TYPES[extra.column]))
    return pa.Table.from_arrays(columns, schema=embedding_schema(extra and extra.column))


def _vectors(arrays: Sequence[Any], kind: np.dtype[Any]) -> pa.Array:
    values = np.concatenate(arrays) if arrays else np.empty((0, EMBEDDING_SIZE))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).astype(kind, copy=False)), EMBEDDING_SIZE)


def parquet_metadata(metadata: Mapping[str, str]) -> dict[bytes, bytes]:
    """Key-value metadata as Parquet files carry them."""
    return {f"vggish_runner.{key}".encode(): value.encode() for key, value in metadata.items()}


def npz_path(clip: str) -> Path:
    """Where a clip's npz goes below ``npz/``, another place for each clip: its own path, if that is a safe file name.

    Else, or where the path looks like one of these, it is one kept inside that folder and within a file name's length,
    with a hash of the clip's name: no two clips have the same, nor one the other's file for a folder.
    """
    parts = clip.split("/")
    safe = [_safe_name(part, number) for number, part in enumerate(parts)]
    if safe != parts or _HASHED.search(parts[-1]) or len(os.fsencode(clip)) > _PATH_BYTES:
        folders = safe[:-1] if len(os.fsencode(clip)) <= _PATH_BYTES else ["_long"]
        safe = [*folders, f"{safe[-1][:40]}~{hashlib.sha256(os.fsencode(clip)).hexdigest()[:24]}"]
    return Path(*safe[:-1], f"{safe[-1]}.npz")


def _safe_name(part: str, number: int) -> str:
    """A part of a path as a name that a folder or, with .npz behind it, a file may have; ``number`` is its place."""
    if part in ("", ".", ".."):
        return {"": "_root" if number == 0 else "_empty", ".": "_here", "..": "_up"}[part]
    if len(os.fsencode(part)) > _NAME_BYTES - len(".npz"):
        part = f"{part[:40]}~"
    if _TAKEN.search(part):
        part += "~"
    return _NO_NAME.sub("_", part) if os.name == "nt" else part
