"""Which types of windows a data set will give, by the heads of a few files: what programs are compiled for beforehand.

No decoder is opened here, in the process that must not die: a WAV or FLAC file says what it holds in its first bytes.
They are read in a thread that is not waited for long, as a share that is gone lets no one go.  A wrong guess costs a
compilation in the middle of the run, and no number.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from runner.audio.wav import Pcm16Wav
from runner.core.errors import ClipError
from runner.core.readable import readable
from runner.dataset.packed.address import ParquetRow, address, is_packed, place_of_clip
from runner.dataset.packed.clips import PackedClips
from runner.storage.prefetch import is_remote
from runner.vggish.constants import SAMPLE_RATE

_CLIPS_LOOKED_AT = 8

_PATIENCE_S = 2.0

_FLAC_HEAD = 22
"""Bytes up to the end of what is read of a FLAC file's STREAMINFO block (RFC 9639, section 8.2)."""


def window_types(manifest: Path, patience_s: float = _PATIENCE_S) -> tuple[str, ...]:
    """The types of windows to expect, ``int16`` and ``float32``: the first clip's type first, both at most.

    Objects are looked at by their names only, since each is read once.  What is not known in ``patience_s`` seconds
    counts as float32.
    """
    paths = _some_paths(manifest)
    if paths and is_remote(paths[0]):
        waves = any(path.lower().endswith((b".wav", b".wave")) for path in paths)
        return ("int16", "float32") if waves else ("float32",)
    found: list[str] = []

    def look() -> None:
        found.extend("int16" if is_int16(path) else "float32" for path in paths)

    thread = threading.Thread(target=look, name="look", daemon=True)
    thread.start()
    thread.join(patience_s)
    return tuple(dict.fromkeys(found[:])) or ("float32",)


def is_int16(path: bytes) -> bool:
    """Whether a file's head is that of 16-bit 16 kHz mono WAV or FLAC, which gives int16 windows."""
    if is_packed(path):
        return _is_packed_int16(path)
    if plain := Pcm16Wav.open(path):
        plain.close()
        return True
    return _is_flac(_head(path))


def _is_packed_int16(path: bytes) -> bool:
    clips, place = PackedClips(1, _PATIENCE_S), place_of_clip(path)
    if isinstance(place, ParquetRow):
        path = address(place._replace(row=0))  # a row group is read from its beginning
    try:
        with clips.take(0, path, (), lambda: None) as file:
            return is_int16(os.fsencode(file.path))
    except ClipError:
        return False
    finally:
        clips.close()


def _some_paths(manifest: Path) -> list[bytes]:
    import pyarrow.parquet as pq

    with readable(manifest), pq.ParquetFile(manifest) as file:
        groups = range(0, file.num_row_groups, max(1, file.num_row_groups // _CLIPS_LOOKED_AT))
        paths = file.read_row_groups(list(groups), columns=["path"])["path"]
    return [paths[row].as_py() for row in range(0, len(paths), max(1, len(paths) // _CLIPS_LOOKED_AT))]


def _head(path: bytes) -> bytes:
    """The first bytes of a regular file; none of anything else."""
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


def _is_flac(head: bytes) -> bool:
    if len(head) < _FLAC_HEAD or head[:4] != b"fLaC" or head[4] & 0x7F:
        return False
    packed = int.from_bytes(head[18:22], "big")  # 20 bits rate, 3 channels - 1, 5 bits a sample - 1, 4 of the count
    return (packed >> 12, (packed >> 9 & 7) + 1, (packed >> 4 & 31) + 1) == (SAMPLE_RATE, 1, 16)
