"""The forms in which embeddings are written: Parquet, npz files, AudioSet's TFRecords.  One writer each.

Each takes a complete shard and has it on disk, whole, when ``write`` returns.  A clip's embeddings are read in blocks,
so that what a writer holds does not grow with the length of a clip (but for TFRecords, whose record is a whole clip:
130 bytes an example).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.files import atomic, make_folder, write_atomic
from runner.journal import NPZ_FILES, STATE, describe_file
from runner.spill import blocks
from runner.vggish.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output import ClipRow

EMBEDDINGS = "embeddings"
NPZ = "npz"
TFRECORD = "tfrecord"
FOLDERS = (EMBEDDINGS, NPZ, TFRECORD)
"""The folders of a run that hold embeddings, one a format."""
DESCRIPTIONS = (f"{NPZ}/metadata.json", f"{TFRECORD}/metadata.json", f"{TFRECORD}/labels.csv")
"""Files in them beside the shards' own."""

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
_EXTRA_TYPES = {"embedding_pca": pa.float32(), "embedding_u8": pa.uint8()}


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
        fields.append((extra, pa.list_(_EXTRA_TYPES[extra], EMBEDDING_SIZE)))
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
        write_atomic(path, json.dumps(described))
        return [path]

    def _write_clip(self, row: ClipRow) -> tuple[str, tuple[int, str]]:
        name = npz_path(row.clip)
        path = self._folder / name
        make_folder(path.parent)
        with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            self._add(file, "embedding", np.dtype(np.float32), blocks(row.embeddings), row.examples)
            if self._extra:
                processed = map(self._extra.process, blocks(row.embeddings))
                kind = np.dtype(_EXTRA_TYPES[self._extra.column].to_pandas_dtype())
                self._add(file, self._extra.column, kind, processed, row.examples)
            small = {
                "start_s": row.start_s + self._hop_s * np.arange(row.examples),
                "padded": np.array(row.padded),
                "clip": np.array(row.clip),
                "label": np.array(row.label or ""),
            }
            for key, array in small.items():
                with _member(file, key) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        return name.as_posix(), describe_file(path)

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


class TfrecordShards:
    """``tfrecord/part-NNNNN.tfrecord``: AudioSet's features, a SequenceExample an embedded clip.

    Context: ``video_id`` (the clip), ``start_time_seconds``, ``end_time_seconds``, ``labels`` (int64); feature list
    ``audio_embedding``, a 128-byte string an example.  ``tfrecord/labels.csv`` gives each label its number: the
    label itself where all are whole numbers, else their alphabetical order.
    Source of the format: the AudioSet download page (research.google.com/audioset/download.html).

    Args:
        folder: the run's folder.
        metadata: what ``tfrecord/metadata.json`` says.
        labels: the data set's distinct ones.
        quantize: makes uint8 [n, 128] of embeddings.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, str],
        labels: Sequence[str],
        quantize: Callable[[NDArray[np.float32]], NDArray[Any]],
    ) -> None:
        self._folder = folder / TFRECORD
        make_folder(self._folder)
        self._quantize = quantize
        self._numbers = _with_known(self._folder / "labels.csv", label_numbers(labels))
        write_atomic(self._folder / "metadata.json", json.dumps(metadata, indent=2))
        table = io.StringIO()
        plain, quoted = (
            csv.writer(table, lineterminator="\n", quoting=each) for each in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        plain.writerow(("index", "label"))
        for label, number in self._numbers.items():
            (quoted if "\r" in label else plain).writerow((number, label))  # what it would not quote, it can't read
        write_atomic(self._folder / "labels.csv", table.getvalue())

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write the shard's file, and give it."""
        import tensorflow as tf

        path = self._folder / f"part-{shard:05d}.tfrecord"
        with atomic(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
            for row in rows:
                if row.examples:
                    writer.write(self._record(row))
        return [path]

    def _record(self, row: ClipRow) -> bytes:
        import tensorflow as tf

        train = tf.train
        numbers = [] if row.label is None else [self._numbers[row.label]]
        context = {
            "video_id": train.Feature(bytes_list=train.BytesList(value=[row.clip.encode()])),
            "start_time_seconds": train.Feature(float_list=train.FloatList(value=[row.start_s])),
            "end_time_seconds": train.Feature(float_list=train.FloatList(value=[row.start_s + row.seconds])),
            "labels": train.Feature(int64_list=train.Int64List(value=numbers)),
        }
        features = [
            train.Feature(bytes_list=train.BytesList(value=[embedding.tobytes()]))
            for block in blocks(row.embeddings)
            for embedding in self._quantize(block)
        ]
        sequence = train.SequenceExample(
            context=train.Features(feature=context),
            feature_lists=train.FeatureLists(feature_list={"audio_embedding": train.FeatureList(feature=features)}),
        )
        serialized: bytes = sequence.SerializeToString(deterministic=True)
        return serialized


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
        _vectors(embeddings, pa.float32()),
    ]
    if extra:
        columns.append(_vectors([extra.process(block) for block in embeddings], _EXTRA_TYPES[extra.column]))
    return pa.Table.from_arrays(columns, schema=embedding_schema(extra and extra.column))


def _vectors(arrays: Sequence[Any], kind: pa.DataType) -> pa.Array:
    values = np.concatenate(arrays) if arrays else np.empty((0, EMBEDDING_SIZE))
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1).astype(kind.to_pandas_dtype(), copy=False)), EMBEDDING_SIZE
    )


def parquet_metadata(metadata: Mapping[str, str]) -> dict[bytes, bytes]:
    """Key-value metadata as Parquet files carry them."""
    return {f"vggish_runner.{key}".encode(): value.encode() for key, value in metadata.items()}


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """A number for each label: itself where all are whole numbers, as AudioSet's are, else its place in the order."""
    if all(label.isascii() and label.isdigit() and len(label) < 19 for label in labels):
        numbers = {label: int(label) for label in sorted(labels, key=int)}
        if len(set(numbers.values())) == len(numbers):  # 1 and 01 are two labels
            return numbers
    return {label: number for number, label in enumerate(sorted(labels))}


def _with_known(path: Path, numbers: dict[str, int]) -> dict[str, int]:
    """The numbers that an earlier session gave, if there was one; labels that are new since come after them."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            known = {row["label"]: int(row["index"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        return numbers
    together = known | numbers
    if together.items() >= known.items() and len(set(together.values())) == len(together):
        return together
    return known | {label: max(known.values()) + 1 + n for n, label in enumerate(sorted(numbers.keys() - known.keys()))}


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
