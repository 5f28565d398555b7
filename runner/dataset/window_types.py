"""Predicts the types of a data set's windows from the first bytes of a few files, to compile programs for them.

No decoder is opened in this process, which must not crash: a WAV or FLAC file has its format in its first bytes.  They
are read in a thread with a time limit, as a network share that is gone blocks its readers.  A wrong prediction costs a
compilation during the run, and changes no number.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from runner.audio.wav import Pcm16Wav
from runner.core.errors import ClipError
from runner.core.readable import readable
from runner.dataset.packed.address import ParquetRow, is_packed, parse_address, to_address
from runner.dataset.packed.clips import PackedClips
from runner.storage.prefetch import is_remote

if TYPE_CHECKING:
    from runner.audio.preparation import Preparation

_SAMPLED_CLIPS = 8

_READ_TIMEOUT_S = 2.0

_FLAC_HEAD = 22
"""Bytes up to the last field that is used of a FLAC file's STREAMINFO block (RFC 9639, section 8.2)."""


def window_types(manifest: Path, preparation: Preparation, *, timeout_s: float = _READ_TIMEOUT_S) -> tuple[str, ...]:
    """Return the types of windows to expect, ``int16`` and ``float32``, the first clip's type first.

    Objects are judged by their names only, since each is downloaded once.  Where no file could be read in time, the
    type is float32.

    Args:
        manifest: manifest.parquet.
        preparation: of the run's clips; all windows are float32 where it leaves no 16-bit samples as they are.
        timeout_s: for reading the files.

    Raises:
        ResumeError: the manifest can't be read.
    """
    if not preparation.keeps_int16:
        return ("float32",)
    paths = _sample_paths(manifest)
    if paths and is_remote(paths[0]):
        waves = any(path.lower().endswith((b".wav", b".wave")) for path in paths)
        return ("int16", "float32") if waves else ("float32",)
    types: list[str] = []

    def read() -> None:
        types.extend("int16" if is_int16(path, preparation.rate) else "float32" for path in paths)

    thread = threading.Thread(target=read, name="window-types", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return tuple(dict.fromkeys(types[:])) or ("float32",)


def is_int16(path: bytes, rate: int) -> bool:
    """Return whether a file is 16-bit mono WAV or FLAC of a rate (Hz) by its first bytes, and has int16 windows."""
    if is_packed(path):
        return _is_packed_int16(path, rate)
    if plain := Pcm16Wav.open(path, rate):
        plain.close()
        return True
    return _is_flac(_head(path), rate)


def _is_packed_int16(path: bytes, rate: int) -> bool:
    clips, location = PackedClips(1, _READ_TIMEOUT_S), parse_address(path)
    if isinstance(location, ParquetRow):
        path = to_address(location._replace(row=0))  # a later row would need all rows before it
    try:
        with clips.open_clip(0, path, (), lambda: None) as file:
            return is_int16(os.fsencode(file.path), rate)
    except ClipError:
        return False
    finally:
        clips.close()


def _sample_paths(manifest: Path) -> list[bytes]:
    import pyarrow.parquet as pq

    with readable(manifest), pq.ParquetFile(manifest) as file:
        groups = range(0, file.num_row_groups, max(1, file.num_row_groups // _SAMPLED_CLIPS))
        paths = file.read_row_groups(list(groups), columns=["path"])["path"]
    return [paths[row].as_py() for row in range(0, len(paths), max(1, len(paths) // _SAMPLED_CLIPS))]


def _head(path: bytes) -> bytes:
    """Return the first bytes of a regular file; nothing of other files."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError):
        return b""
    try:
        return os.read(descriptor, _FLAC_HEAD) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _is_flac(head: bytes, rate: int) -> bool:
    if len(head) < _FLAC_HEAD or head[:4] != b"fLaC" or head[4] & 0x7F:
        return False
    packed = int.from_bytes(head[18:22], "big")  # 20 bits rate, 3 channels - 1, 5 bits a sample - 1, 4 of the count
    return (packed >> 12, (packed >> 9 & 7) + 1, (packed >> 4 & 31) + 1) == (rate, 1, 16)
