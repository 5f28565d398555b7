"""Decoding with PyAV (the extra ``av``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.audio.file_view import FileView
from runner.audio.sources import SequentialSource, SourceFault
from runner.core.errors import ClipError

if TYPE_CHECKING:
    from runner.audio.sources import Array, Stamp

AV_EXTENSIONS = frozenset(
    {".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka", ".wma", ".ac3", ".amr", ".ape", ".wv", ".tta", ".mpc"}
)
"""Formats that PyAV reads and libsndfile does not."""

_PADDING_S = 0.1
"""Largest error of a duration, in seconds, that an encoder's padding explains."""


def open_av_source(path: str | bytes, stamp: Stamp | None, extension: str, refusal: str) -> AvSource:
    """Open a file that libsndfile refused.

    Args:
        path: of the file.
        stamp: of the file, if it may be cached for a later clip of it.
        extension: of the file's name.
        refusal: libsndfile's error message.

    Raises:
        ClipError: PyAV can't open it either, or is not installed.
    """
    if extension not in AV_EXTENSIONS:
        raise ClipError("unsupported_format", refusal)
    try:
        import av
    except ImportError:
        raise ClipError(
            "unsupported_format", f"{extension} needs the extra av: pip install 'vggish-runner[av]'"
        ) from None
    try:
        return AvSource(path, stamp)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError("unsupported_format", f"{refusal} PyAV: {getattr(error, 'strerror', None) or error}") from error


class AvSource(SequentialSource):
    """A file that PyAV decodes; encoder padding is not trimmed."""

    dtype = "float32"

    def __init__(self, path: str | bytes, stamp: Stamp | None) -> None:
        super().__init__(stamp)
        self._path = path
        self._open()

    def _open(self) -> None:
        import av

        self._view = FileView(self._path)
        self._view.name = os.fsdecode(self._path)
        self._container: Any = None
        try:
            self._container = av.open(self._view)
            if not self._container.streams.audio:
                raise ClipError("unsupported_format", "the file has no audio stream")
        except BaseException:
            self._release()
            self._check_view()
            raise
        self._audio: Any = self._container.streams.audio[0]
        self.sample_rate = int(self._audio.rate or 0)
        self.channels = int(self._audio.channels or 0)
        self._resampler: Any = av.AudioResampler(format="fltp", layout=self._audio.layout, rate=self.sample_rate)
        self._is_used = False

    def _check_view(self) -> None:
        """Raise the system's error, which FFmpeg takes for the file's end or for broken content."""
        if self._view.fault is not None:
            raise ClipError("unreadable", str(self._view.fault))

    def _restart(self) -> None:
        if self._is_used:
            self._release()
            self._open()

    def _decode(self) -> Iterator[Array]:
        import av

        self._is_used = True
        packets = self._container.demux(self._audio)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
                blocks = [resampled for frame in frames for resampled in self._resampler.resample(frame)]
            except av.EOFError:
                packet, blocks = None, []
            except (av.FFmpegError, ValueError) as error:
                self._check_view()
                raise SourceFault(getattr(error, "strerror", None) or str(error)) from error
            self._check_view()
            if packet is None:
                return
            for block in blocks:
                yield np.ascontiguousarray(block.to_ndarray().T, dtype=np.float32)

    def shortfall(self, frames: int) -> str | None:
        stated = self._stated_s()
        if stated is None or frames / self.sample_rate > stated - _PADDING_S:
            return None
        return f"{frames / self.sample_rate:.1f} of {stated:.1f} s decoded"

    def _stated_s(self) -> float | None:
        """Return the duration that the header states; None for containers that estimate it from the file's size."""
        containers = set(self._container.format.name.split(","))
        if containers & {"mp4", "tta", "ape", "wv"} and self._audio.duration:
            return float(self._audio.duration * self._audio.time_base)
        if "matroska" in containers and self._container.duration and not self._audio.bit_rate:
            return float(self._container.duration) / 1e6
        return None

    def _release(self) -> None:
        if self._container is not None:
            self._container.close()
        self._view.close()
