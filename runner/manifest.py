"""The data set as a table of clips: every audio file of a folder, or the rows of a manifest file."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from runner.config import DatasetConfig, FolderDataset, ManifestDataset, PackedDataset
from runner.demo import demo_clips
from runner.digests import digest_of
from runner.errors import ClipError, DatasetError
from runner.listing import walk, walk_store
from runner.remote import fetch
from runner.stores import is_url
from runner.vggish.constants import EXAMPLE_HOP_S

SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("path", pa.binary()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
CHUNK_CLIPS = 65_536
"""Clips that are Python objects at a time while a folder is listed, and rows of a row group of manifest.parquet."""
_FEWEST_CLIPS, _MOST_CLIPS, _SHARDS = 64, 8192, 256
_MOST_EXAMPLES = 1 << 18
"""Examples of a shard by ``longest_seconds``: 128 MiB of embeddings, and what a kill costs at most."""
_LEAST_BYTES_A_S = (16_000, 4_000)
"""What a second takes at least in formats of samples (16 bits at 8 kHz), and in others (speech at 32 kbit/s)."""
_PCM = (".wav", ".wave", ".w64", ".rf64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".flac")
_AMBIGUOUS = re.compile(rb"\\(?=x(?:5c|[89a-f][0-9a-f]))")


@dataclass(frozen=True)
class Manifest:
    """The clips of a run.

    ``table`` has the columns of ``SCHEMA``: ``clip`` is the path relative to ``root`` (with ``#t=start,end`` for a part
    of a file), ``path`` the absolute path in the file system's bytes, ``bytes`` the file's size and ``mtime_ns`` its
    time of modification (−1: unknown).  Of a packed clip ``clip`` is its name in the container, ``path`` an address as
    in ``runner.packed``, ``bytes`` the clip's own and ``mtime_ns`` the container's.
    ``digest`` is the same for the same data on another machine.  ``ignored`` counts files that are no clips.
    ``part`` tells of a partition: which, of how many, and the whole's digest, clips, and the numbers and sizes of
    the shards in it.  ``whole`` is all that it was cut from.
    """

    root: str
    table: pa.Table
    digest: str
    is_demo: bool
    description: str
    ignored: dict[str, int] = field(default_factory=dict)
    part: dict[str, Any] | None = None
    whole: pa.Table | None = None


def take_part(
    whole: Manifest, which: int, of: int, shard_clips: int | None, hop_s: float = EXAMPLE_HOP_S, *, labels: bool = False
) -> Manifest:
    """The clips of every ``of``-th shard of the whole, from shard ``which`` (1 is the first) on.

    The same on every machine that lists the same data; the parts together are the whole.

    Args:
        whole: the data set.
        which: the part, from 1.
        of: how many parts there are.
        shard_clips: as in ``plan_shards``.
        hop_s: seconds between examples.
        labels: whether to tell the whole's labels, for a format that numbers them.

    Raises:
        DatasetError: there are fewer shards than parts.
    """
    shards = shards_of(whole.table, shard_clips, hop_s)
    numbers = list(range(which - 1, len(shards), of))
    if len(shards) < of:  # for every part alike, as without this one they would make no whole
        raise DatasetError(
            f"dataset.partition={which}/{of}: {whole.description} make only {len(shards)} shards; "
            "use fewer partitions, or a smaller output.shard_clips"
        )
    pieces = [whole.table.slice(first, end - first) for first, end in (shards[number] for number in numbers)]
    table = pa.concat_tables(pieces)
    part: dict[str, Any] = {
        "which": which,
        "of": of,
        "digest": whole.digest,
        "clips": whole.table.num_rows,
        "shards": numbers,
        "sizes": [piece.num_rows for piece in pieces],
    }
    if labels:
        part["labels"] = whole.table["label"].unique().drop_null().to_pylist()
    description = f"{table.num_rows:,} clips, part {which} of {of} of {whole.description}"
    return Manifest(whole.root, table, digest_of(table), whole.is_demo, description, whole.ignored, part, whole.table)


def build_manifest(dataset: DatasetConfig, outputs: Path) -> Manifest:
    """List the data set.

    Args:
        dataset: what the configuration asks for.
        outputs: where the demo clips are made, should they be wanted, and listings of packed data sets kept.

    Raises:
        DatasetError: there are no clips, or a manifest file has a bad row.
    """
    if isinstance(dataset, ManifestDataset):
        return _from_file(dataset)
    if isinstance(dataset, PackedDataset):
        from runner.packed_manifest import list_packed

        return list_packed(dataset, outputs)
    if isinstance(dataset, FolderDataset) and dataset.root is not None:
        root = dataset.root.rstrip("/") if is_url(dataset.root) else Path(dataset.root).expanduser().resolve()
        return _from_folder(root, dataset, is_demo=False)
    return _from_folder(demo_clips(outputs), FolderDataset(extensions=["wav", "flac", "ogg", "mp3"]), is_demo=True)


def shards_of(table: pa.Table, shard_clips: int | None, hop_s: float) -> list[tuple[int, int]]:
    """The shards of a table of clips; see ``plan_shards``."""
    return plan_shards(table.num_rows, shard_clips, longest_seconds(table), hop_s)


def plan_shards(
    n_clips: int,
    shard_clips: int | None,
    seconds: NDArray[np.float64] | None = None,
    hop_s: float = EXAMPLE_HOP_S,
) -> list[tuple[int, int]]:
    """(first clip, one past the last) of each shard: about 256 shards of 64 to 8,192 clips, fewer of long ones.

    Args:
        n_clips: how many there are.
        shard_clips: the clips of a shard, however long they are; None: as above.
        seconds: how long each may be, [n_clips]; see ``longest_seconds``.
        hop_s: seconds between examples.
    """
    size = shard_clips or min(_MOST_CLIPS, max(_FEWEST_CLIPS, -(-n_clips // _SHARDS)))
    if shard_clips or seconds is None:
        return [(first, min(first + size, n_clips)) for first in range(0, n_clips, size)]
    ends = np.cumsum(seconds)
    shards = []
    first = 0
    while first < n_clips:
        before = ends[first - 1] if first else 0.0
        end = int(np.searchsorted(ends, before + _MOST_EXAMPLES * hop_s, side="right"))
        shards.append((first, first := max(first + 1, min(end, first + size, n_clips))))
    return shards


def longest_seconds(table: pa.Table) -> NDArray[np.float64]:
    """How long each clip may be, by its range, or by its file's size and what a second of its format takes at least.

    Args:
        table: clips as in ``Manifest``.

    Returns:
        Seconds, float64 [clips]; 0 where nothing is known.
    """
    suffix = rf"({'|'.join(map(re.escape, _PCM))})$"
    found = np.zeros(table.num_rows)
    first = 0
    for batch in table.select(["path", "start", "end", "bytes"]).to_batches(CHUNK_CLIPS):
        is_pcm = pc.match_substring_regex(batch["path"], suffix, ignore_case=True).to_numpy(zero_copy_only=False)
        size, start = batch["bytes"].to_numpy(), pc.fill_null(batch["start"], 0.0).to_numpy()
        of_file = np.where(size < 0, np.inf, size / np.where(is_pcm, *_LEAST_BYTES_A_S))
        end = np.minimum(pc.fill_null(batch["end"], np.inf).to_numpy(), of_file)
        found[first : first + len(end)] = np.where(np.isfinite(end), np.maximum(end - start, 0.0), 0.0)
        first += len(end)
    return found


def _from_folder(root: Path | str, dataset: FolderDataset, *, is_demo: bool) -> Manifest:
    wanted = {"." + extension.lower().lstrip(".") for extension in dataset.extensions}
    ignored: Counter[str] = Counter()
    chunks = _Chunks(os.path.join(os.fsencode(root), b""), labelled=dataset.label_from == "parent")
    everything = dataset.pattern == "*"
    found = walk_store(root, dataset.fetch_timeout_s) if isinstance(root, str) else walk(root, ignored)
    for relative, size, mtime_ns in found:
        extension = os.path.splitext(relative)[1].lower()
        if extension not in wanted:
            ignored[extension or "(no extension)"] += 1
        elif not everything and not fnmatchcase(relative, dataset.pattern):
            ignored["(not in dataset.pattern)"] += 1
        else:
            chunks.add(relative, size, mtime_ns)
    table = chunks.table()
    if not table.num_rows:
        seen = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5)) or "no files at all"
        raise DatasetError(
            f"dataset.root={root} holds no clips (looked for {', '.join(sorted(wanted))}; found {seen}): "
            "name another folder, or the right dataset.extensions and dataset.pattern"
        )
    kind, left_out = ("demo clips", {}) if is_demo else ("clips", dict(ignored))
    return Manifest(str(root), table, digest_of(table), is_demo, f"{table.num_rows:,} {kind} in {root}", left_out)


class _Chunks:
    """Collects the files of a folder as rows of ``SCHEMA``, without a Python object a file for longer than a chunk.

    Args:
        prefix: of all paths, in the file system's bytes.
        labelled: whether the parent folder's name is the label.
    """

    def __init__(self, prefix: bytes, *, labelled: bool) -> None:
        self._prefix = prefix
        self._labelled = labelled
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._times: list[int] = []
        self._batches: list[pa.RecordBatch] = []
        self._no_times = pa.nulls(CHUNK_CLIPS, pa.float64())  # one for all chunks: nothing is ever written to it

    def add(self, relative: str, size: int, mtime_ns: int) -> None:
        """Take a file."""
        self._names.append(relative)
        self._sizes.append(size)
        self._times.append(mtime_ns)
        if len(self._names) == CHUNK_CLIPS:
            self._flush()

    def table(self) -> pa.Table:
        """All of them, in the order in which they came."""
        if self._names:
            self._flush()
        return pa.Table.from_batches(self._batches, SCHEMA)

    def _flush(self) -> None:
        count, encoded = len(self._names), [os.fsencode(name) for name in self._names]
        labels = map(parent_of, encoded) if self._labelled else itertools.repeat(None, count)
        self._batches.append(
            pa.record_batch(
                [
                    pa.array(map(shown, encoded), pa.string(), size=count),
                    pa.array([self._prefix + name for name in encoded], pa.binary()),
                    self._no_times[:count],
                    self._no_times[:count],
                    pa.array(labels, pa.string(), size=count),
                    pa.array(self._sizes, pa.int64()),
                    pa.array(self._times, pa.int64()),
                ],
                schema=SCHEMA,
            )
        )
        self._names, self._sizes, self._times = [], [], []


def _from_file(dataset: ManifestDataset) -> Manifest:
    try:
        return _from_rows(dataset)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{dataset.path} holds text that is not UTF-8 ({error}): convert it") from error


def _from_rows(dataset: ManifestDataset) -> Manifest:
    given_file = str(dataset.path)
    file = given_file if is_url(given_file) else Path(given_file).expanduser().resolve()
    columns = _read_columns(file, dataset.fetch_timeout_s)
    paths = columns["path"].to_pylist()
    starts, ends = _seconds(file, columns, "start"), _seconds(file, columns, "end")
    _check_rows(file, paths, starts, ends)
    _check_labels(file, columns)
    root: Path | str
    if is_url(dataset.root or given_file):
        root = (dataset.root or given_file.rpartition("/")[0]).rstrip("/")
        spellings = [f"{root}/"]
        if not dataset.allow_outside:
            _check_below(file, root, paths)
        places = [path if is_url(path) else f"{root}/{path.lstrip('/')}" for path in paths]
        names = [_below(spellings, place) for place in places]
        known = [(-1, -1)] * len(paths)  # to ask for each would be a request a clip
    else:
        root = Path(dataset.root).expanduser().resolve() if dataset.root else Path(file).parent
        given = Path(dataset.root or Path(given_file).parent).expanduser().absolute()
        ways = (root, given, Path(os.path.normpath(given)))
        spellings = [os.path.join(folder, "") for folder in ways if folder.resolve() == root]
        if not dataset.allow_outside:
            _check_inside(file, root, given, paths)
        names = [_below(spellings, _normal(root, path)) for path in paths]
        places = [os.path.join(root, name) for name in names]
        known = stamps(places)
    clips = [
        name + (f"#t={_mark(start)},{_mark(end)}" if start is not None or end is not None else "")
        for name, start, end in zip(names, starts, ends, strict=True)
    ]
    _check_unique(file, clips)
    table = pa.table(
        {
            "clip": pa.array(clips, pa.string()),
            "path": pa.array(map(os.fsencode, places), pa.binary(), size=len(places)),
            "start": pa.array(starts, pa.float64()),
            "end": pa.array(ends, pa.float64()),
            "label": columns["label"] if "label" in columns else pa.nulls(len(clips), pa.string()),
            "bytes": pa.array([size for size, _ in known], pa.int64()),
            "mtime_ns": pa.array([mtime_ns for _, mtime_ns in known], pa.int64()),
        },
        schema=SCHEMA,
    )
    return Manifest(str(root), table, digest_of(table), False, f"{len(clips):,} clips of {file}")


def _read_columns(file: Path | str, timeout_s: float) -> dict[str, pa.ChunkedArray]:
    if isinstance(file, Path):
        return _columns_of(file, file)
    try:
        with fetch(file, timeout_s) as fetched:
            return _columns_of(file, fetched.path)
    except ClipError as error:
        raise DatasetError(f"dataset.path={file} can't be read ({error.reason}: {error.detail}): check it") from error
    except ImportError as error:
        raise DatasetError(f"dataset.path={file} needs a driver that is not installed: {error}") from error


def _columns_of(file: Path | str, source: Path | str) -> dict[str, pa.ChunkedArray]:
    """The columns of a manifest file that are known, from where its bytes lie."""
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if str(file).lower().endswith((".parquet", ".pq")):
            table = pyarrow.parquet.read_table(source)
        else:
            convert = pyarrow.csv.ConvertOptions(
                column_types={"path": pa.string(), "label": pa.string(), "start": pa.string(), "end": pa.string()},
                strings_can_be_null=True,
                null_values=[""],
            )
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(source, convert_options=convert, parse_options=parse)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{file} can't be read as a manifest ({error}): give a CSV (UTF-8) or Parquet file"
        ) from error
    names = table.column_names
    if "path" not in names:
        raise DatasetError(f"{file} has no column 'path' (it has {', '.join(names)}): name it so")
    if not table.num_rows:
        raise DatasetError(f"{file} has no rows: give at least one clip")
    return {name: _text(file, table, name) for name in ("path", "start", "end", "label") if name in names}


def _text(file: Path | str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column as text, whatever type a Parquet file gave it."""
    if table.column_names.count(name) > 1:
        raise DatasetError(f"{file} has several columns '{name}': leave one")
    try:
        return table[name].cast(pa.string())
    except pa.ArrowException as error:
        kind = table[name].type
        raise DatasetError(f"{file}, column '{name}' is no text or number but {kind} ({error}): convert it") from error


def _seconds(file: Path | str, columns: dict[str, pa.ChunkedArray], name: str) -> list[float | None]:
    """A column of times; None where the column or the cell is empty."""
    if name not in columns:
        return [None] * len(columns["path"])
    seconds: list[float | None] = []
    for row, value in enumerate(columns[name].to_pylist(), start=1):
        try:
            number = None if value is None else float(value)
        except ValueError:
            number = float("nan")
        if number is not None and not (np.isfinite(number) and number >= 0):
            raise DatasetError(f"{file}, row {row}: {name}={value} is not a time: give seconds, 0 or more")
        seconds.append(number)
    return seconds


def _check_rows(
    file: Path | str, paths: Sequence[Any], starts: Sequence[float | None], ends: Sequence[float | None]
) -> None:
    for row, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True), start=1):
        if not path:
            raise DatasetError(f"{file}, row {row}: path is empty: give the clip's file")
        if end is not None and end <= (start or 0.0):
            raise DatasetError(f"{file}, row {row}: end={end} is not after start={start or 0.0}: give end > start")


def _check_labels(file: Path | str, columns: dict[str, pa.ChunkedArray]) -> None:
    row = pc.index(pc.match_substring(columns["label"], "\0"), True).as_py() if "label" in columns else -1
    if row >= 0:
        raise DatasetError(f"{file}, row {row + 1}: its label holds a NUL character: take it out")


def _check_inside(file: Path | str, root: Path, given: Path, paths: Sequence[str]) -> None:
    """No path leads out of the root, by its spelling (links inside it are the owner's affair)."""
    inside = tuple(os.path.join(folder, "") for folder in {str(root), str(given)})
    for row, path in enumerate(paths, start=1):
        if not os.path.normpath(os.path.join(root, path)).startswith(inside):
            raise DatasetError(
                f"{file}, row {row}: {path} leads out of the data set's root {root}: name another dataset.root, "
                "or set dataset.allow_outside=true"
            )


def _check_below(file: Path | str, root: str, paths: Sequence[str]) -> None:
    """No path leads out of the root's prefix."""
    for row, path in enumerate(paths, start=1):
        if (is_url(path) and not path.startswith(f"{root}/")) or ".." in path.split("/"):
            raise DatasetError(
                f"{file}, row {row}: {path} leads out of the data set's root {root}: name another dataset.root, "
                "or set dataset.allow_outside=true"
            )


def _check_unique(file: Path | str, clips: Sequence[str]) -> None:
    if len(set(clips)) == len(clips):
        return
    first: dict[str, int] = {}
    for row, clip in enumerate(clips, start=1):
        if clip in first:
            raise DatasetError(f"{file}, row {row}: {clip} is in row {first[clip]} already: take one of them out")
        first[clip] = row


def _normal(root: Path, path: str) -> str:
    """A path as all spellings of it are: ``./a``, ``b//a`` and ``b/../a``; a link's ``..`` is elsewhere, and stays."""
    if "//" not in path and "./" not in path:
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    spelled = "/" * path.startswith("/") + "/".join(parts)
    if ".." not in parts:
        return spelled
    plain = os.path.normpath(spelled)
    folders = (os.path.join(root, os.path.dirname(each)) for each in (spelled, plain))
    return plain if len({os.path.realpath(folder) for folder in folders}) == 1 else spelled


def stamps(paths: Sequence[str]) -> list[tuple[int, int]]:
    """(size in bytes, mtime in ns; −1: unknown) of each file."""
    known: dict[str, tuple[int, int]] = {}
    for path in paths:
        if path not in known:
            try:
                found = os.stat(path)
                known[path] = found.st_size, found.st_mtime_ns
            except (OSError, ValueError):
                known[path] = -1, -1
    return [known[path] for path in paths]


def shown(name: bytes) -> str:
    r"""A name as text, another for each: bytes that are not UTF-8 as ``\xff``, a backslash that reads so ``\x5c``."""
    plain = _AMBIGUOUS.sub(rb"\\x5c", name) if b"\\x" in name else name
    return plain.decode("utf-8", "backslashreplace")


def _below(spellings: Sequence[str], path: str) -> str:
    """The path relative to the root, which absolute paths may spell in several ways (a link on the way to it)."""
    spelling = next((spelling for spelling in spellings if path.startswith(spelling)), "")
    return path[len(spelling) :].replace(os.sep, "/")


def parent_of(name: bytes) -> str | None:
    folder, slash, _ = name.rpartition(b"/")
    return shown(folder.rpartition(b"/")[2]) if slash else None


def _mark(seconds: float | None) -> str:
    return "" if seconds is None else repr(seconds).removesuffix(".0")
