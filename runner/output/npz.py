"""Embeddings in NumPy archives, one file a clip."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from runner.core.files import FileDigest, atomic, digest_file, make_folder, write_atomic, write_shared
from runner.core.layout import RunLayout, shard_name
from runner.output.parquet import POSTPROCESSED_TYPES
from runner.output.spill import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.rows import ClipRow, EmbeddingInfo, PostprocessedColumn

_MAX_NAME_BYTES = 240
"""Longest file name that is written: 255 bytes is the limit of file systems, and temporary names are longer."""

_MAX_PATH_BYTES = 1024
"""Longest path of a clip that is used: systems take 4,096 bytes at most, some of them for the run's folder."""

_HASHED_NAME = re.compile(r"~[0-9a-f]{24}\Z")
"""The end of a name that was made for a clip whose own could not be used."""

_RESERVED_NAME = re.compile(r"\.npz\Z|\.tmp\Z|\Ametadata\.json\Z", re.IGNORECASE)
"""Names of a run's own files, which no folder may have."""

_WINDOWS_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')

_WRITERS = 8


class NpzFiles:
    """Writes ``npz/CLIP.npz`` for each embedded clip: an array an output, ``start_s``, ``padded``, ``clip``, ``label``.

    ``start_s`` is float64 [n]; ``label`` is an empty string for a clip without one; a post-processed form has its own
    array.  ``npz/metadata.json`` holds the run's metadata.  The files are too many for the journal: it has a list of a
    shard's files, ``.runner/npz/part-NNNNN.json``, with their sizes and SHA-256.

    Args:
        folder: the run's folder.
        info: on its embeddings.
        extra: the post-processed form; None for none.
    """

    def __init__(self, folder: Path, info: EmbeddingInfo, extra: PostprocessedColumn | None = None) -> None:
        layout = RunLayout(folder)
        self._folder, self._lists = layout.npz, layout.npz_lists
        make_folder(self._folder)
        make_folder(self._lists)
        self._info = info
        self._extra = extra
        write_shared(layout.npz_metadata, json.dumps(info.metadata, indent=2))

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write the files of a shard's clips, several at once, and return their list; see ``ShardFormat``."""
        with ThreadPoolExecutor(_WRITERS) as threads:
            files = dict(threads.map(self._write_clip, (row for row in rows if row.examples)))
        path = self._lists / shard_name(shard, ".json")
        earlier = path.read_bytes() if path.exists() else b"{}"
        write_atomic(path, json.dumps(files))
        self._remove_obsolete(earlier, files.keys())
        return [path]

    def _remove_obsolete(self, earlier: bytes, current: Collection[str]) -> None:
        """Remove the files that an earlier attempt wrote for clips of the shard that are skipped now."""
        with contextlib.suppress(ValueError, AttributeError):  # a damaged list
            for name in json.loads(earlier).keys() - set(current):
                (self._folder / name).unlink(missing_ok=True)

    def _write_clip(self, row: ClipRow) -> tuple[str, FileDigest]:
        name = npz_path(row.clip)
        path = self._folder / name
        make_folder(path.parent)
        with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for output, columns in zip(self._info.outputs, self._info.slices, strict=True):
                own = (block[:, columns] for block in blocks(row.embeddings, self._info.block_rows))
                _add(file, output.name, np.dtype(np.float32), own, (row.examples, output.width))
            if self._extra:
                firsts = map(self._info.first, blocks(row.embeddings, self._info.block_rows))
                dtype, shape = POSTPROCESSED_TYPES[self._extra.column], (row.examples, self._info.outputs[0].width)
                _add(file, self._extra.column, dtype, map(self._extra.process, firsts), shape)
            small = {
                "start_s": row.start_s + self._info.hop_s * np.arange(row.examples),
                "padded": np.array(row.padded),
                "clip": np.array(row.clip),
                "label": np.array(row.label or ""),
            }
            for key, array in small.items():
                with _member(file, key) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        return name.as_posix(), digest_file(path)


def _add(
    file: zipfile.ZipFile, name: str, dtype: np.dtype[Any], arrays: Iterable[NDArray[Any]], shape: tuple[int, int]
) -> None:
    """Write an array from blocks of its rows, with the bytes that ``numpy.savez`` writes for all at once."""
    with _member(file, name) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(member, header | {"shape": shape})
        for array in arrays:
            member.write(np.ascontiguousarray(array, dtype).data)


def _member(file: zipfile.ZipFile, name: str) -> IO[bytes]:
    return file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)  # without the time: reproducible bytes


def npz_path(clip: str) -> Path:
    """Return the path of a clip's npz below ``npz/``, different for each clip.

    It is the clip's own path if that is safe.  Otherwise, or where that could be mistaken for a path made here, it
    stays inside the folder and within the length of file names, with a hash of the clip's name: no two clips share a
    file, and no clip's file is another's folder.
    """
    parts = clip.split("/")
    safe = [_safe_name(part, is_first=number == 0) for number, part in enumerate(parts)]
    is_too_long = len(os.fsencode(clip)) > _MAX_PATH_BYTES
    if safe != parts or _HASHED_NAME.search(parts[-1]) or is_too_long:
        folders = ["_long"] if is_too_long else safe[:-1]
        safe = [*folders, f"{safe[-1][:40]}~{hashlib.sha256(os.fsencode(clip)).hexdigest()[:24]}"]
    return Path(*safe[:-1], f"{safe[-1]}.npz")


def _safe_name(part: str, *, is_first: bool) -> str:
    """Return a part of a path as a name that a folder or, with .npz appended, a file may have."""
    if part in ("", ".", ".."):
        return {"": "_root" if is_first else "_empty", ".": "_here", "..": "_up"}[part]
    if len(os.fsencode(part)) > _MAX_NAME_BYTES - len(".npz"):
        part = f"{part[:40]}~"
    if _RESERVED_NAME.search(part):
        part += "~"
    return _WINDOWS_FORBIDDEN.sub("_", part) if os.name == "nt" else part
