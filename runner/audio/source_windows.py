"""Windows at their file's own rate and channels, for a device that resamples.

Such a window has the inputs of all samples of a model's window, those that the filter reaches beyond both ends
included, so a device can resample it by itself.  Windows begin at phase 0 of the filter: their hop is a whole number of
the rate's periods, or the rate is resampled on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.audio.framing import WindowCutter, cut, scaled
from runner.audio.resample import StreamResampler, filter_of

if TYPE_CHECKING:
    from runner.audio.framing import Framing, Windows
    from runner.audio.preparation import Preparation

Array = NDArray[Any]

RATES = frozenset({8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000})
"""Hz; other rates are resampled on the host, so that the programs that a device compiles are few."""

_MOST_OVERLAPPING = 4.1
"""Windows that have a sample; with shorter hops, copying them takes longer than resampling once (measured for VGGish:
0.24 s is the least hop)."""

METHODS = ("kaiser_best", "sinc_hann")
"""Resamplers whose filter is a matrix."""


class WindowKind(NamedTuple):
    """What the windows of a slot are: at the model's rate, or at one that the device is to resample.

    Attributes:
        dtype: int16 or float32.
        shape: of one window: [window_samples] at the model's rate, or [frames, channels], of which two are averaged.
        source_rate: Hz of windows that are to be resampled; None at the model's rate.
    """

    dtype: str
    shape: tuple[int, ...]
    source_rate: int | None = None

    @classmethod
    def of(cls, windows: Array, rate: int) -> WindowKind:
        """Return the kind of windows: [n, window_samples] at the model's rate, or [n, frames, channels] at ``rate``."""
        return cls(windows.dtype.name, windows.shape[1:], rate if windows.ndim == 3 else None)

    @property
    def bytes(self) -> int:
        """Bytes of one window."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class SourceWindows:
    """A batch of windows at a rate other than the model's.

    Attributes:
        windows: [rows, frames, channels], int16 or float32; the rows after the first ``count`` mean nothing.
        filter: of their rate.
        count: windows of the batch.
    """

    windows: Array
    filter: WindowFilter
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class WindowFilter:
    """The resampling of windows of one rate to the model's, as a product of matrices.

    A window is cut into ``blocks`` + 1 blocks of ``inputs`` frames; each two neighbors give ``outputs`` samples:
    [blocks, 2 · inputs] · [2 · inputs, outputs].

    Attributes:
        rate: Hz.
        target_rate: the model's, in Hz.
        method: the resampler.
        window_samples: length of a resampled window.
        inputs: frames of a block.
        blocks: products.
        half_width: frames of a window before its first output.
        weights: float64 [2 · inputs, outputs].
        hop: frames between windows.
        count: function from the frames of a clip to its resampled samples.
    """

    rate: int
    target_rate: int
    method: str
    window_samples: int
    inputs: int
    blocks: int
    half_width: int
    weights: NDArray[np.float64]
    hop: int
    count: Callable[[int], int]

    @property
    def frames(self) -> int:
        """Length of a window."""
        return (self.blocks + 1) * self.inputs

    @property
    def outputs(self) -> int:
        """Resampled samples of two blocks."""
        return int(self.weights.shape[1])

    def apply(self, windows: Array) -> NDArray[np.float32]:
        """Resample windows [n, frames, channels] on the host to float32 [n, window_samples]."""
        mono = scaled(windows).mean(axis=2, dtype=np.float32).astype(np.float64)
        blocks = mono.reshape(-1, self.blocks + 1, self.inputs)
        resampled = blocks[:, :-1] @ self.weights[: self.inputs] + blocks[:, 1:] @ self.weights[self.inputs :]
        rows = resampled.reshape(-1, self.blocks * self.outputs)
        flat: NDArray[np.float32] = rows[:, : self.window_samples].astype(np.float32)
        return flat


@lru_cache(maxsize=2 * len(RATES))
def window_filter(rate: int, preparation: Preparation, framing: Framing) -> WindowFilter | None:
    """Return the filter of a rate's windows; None where clips of the rate become the model's waveform on the host.

    Args:
        rate: Hz.
        preparation: with the model's rate, and the resampler.
        framing: of the run.
    """
    target_rate, method = preparation.rate, preparation.resampler
    if rate == target_rate or rate not in RATES or method not in METHODS:
        return None
    if framing.window_samples > _MOST_OVERLAPPING * framing.hop_samples:
        return None
    filter_ = filter_of(rate, target_rate, method)
    hop_periods, remainder = divmod(framing.hop_samples, filter_.up)
    if remainder:
        return None
    periods = -(-(2 * filter_.half_width + 1) // filter_.down)  # so that two blocks have all inputs of one's outputs
    inputs, outputs = filter_.down * periods, filter_.up * periods
    first, taps = filter_.weights(np.arange(outputs))
    weights = np.zeros((2 * inputs, outputs))
    weights[first[:, None] + np.arange(taps.shape[1]), np.arange(outputs)[:, None]] = taps
    return WindowFilter(
        rate=rate,
        target_rate=target_rate,
        method=method,
        window_samples=framing.window_samples,
        inputs=inputs,
        blocks=-(-framing.window_samples // outputs),
        half_width=filter_.half_width,
        weights=weights,
        hop=hop_periods * filter_.down,
        count=filter_.count,
    )


class SourceWindowCutter:
    """Cuts one clip's blocks into windows at their own rate, as many as ``WindowCutter`` cuts at the model's.

    A clip too short for one window is resampled here, and its window is one at the model's rate.

    Args:
        window_filter: of the blocks' rate.
        preparation: of the clip.
        framing: of the run, without padding to a length or at a clip's end.

    Attributes:
        samples: samples at the model's rate that the blocks so far come to.
        examples: windows returned so far.
        padded: whether a padded window was returned.
    """

    def __init__(self, window_filter: WindowFilter, preparation: Preparation, framing: Framing) -> None:
        self._filter = window_filter
        self._preparation = preparation
        self._framing = framing
        self._buffer: Array | None = None
        self._skip = self._frames = 0
        self.examples = 0
        self.padded = False

    @property
    def samples(self) -> int:
        return self._filter.count(self._frames)

    def push(self, block: Array) -> Array:
        """Add a block [n, channels], int16 or float32; return the windows [k, frames, channels] (a view) that are
        complete with it."""
        channels, dtype = self._preparation.device_channels(block)
        self._frames += len(block)
        if self._buffer is None:
            self._buffer = np.zeros((self._filter.half_width, channels), dtype)
        skipped = min(self._skip, len(block))
        self._skip -= skipped
        before = len(self._buffer)
        buffer = np.empty((before + len(block) - skipped, channels), dtype)
        buffer[:before] = self._buffer
        self._preparation.copy_device_channels(block[skipped:], buffer[before:])
        return self._cut(buffer)

    def finish(self) -> Array:
        """Return the last windows, or the padded one of a short clip, float32 [k, window_samples]."""
        window, hop = self._framing.window_samples, self._framing.hop_samples
        if self._buffer is None:
            return np.empty((0, window), np.float32)
        if self.samples < window:
            return self._resample_short(self._buffer[self._filter.half_width :])
        remaining = 1 + (self.samples - window) // hop - self.examples
        needed = (remaining - 1) * self._filter.hop + self._filter.frames - len(self._buffer) + self._skip
        silence = np.zeros((max(0, needed), self._buffer.shape[1]), self._buffer.dtype)
        return self._cut(np.concatenate([self._buffer, silence[self._skip :]]))[:remaining]

    def _cut(self, buffer: Array) -> Array:
        """Cut the windows that are complete, and buffer the rest."""
        window_filter = self._filter
        count = max(0, (len(buffer) - window_filter.frames) // window_filter.hop + 1)
        used = count * window_filter.hop
        self._skip += max(0, used - len(buffer))
        self._buffer = buffer[used:].copy()
        self.examples += count
        frame_bytes = buffer.strides[0]
        shape = (count, window_filter.frames, buffer.shape[1])
        strides = (window_filter.hop * frame_bytes, frame_bytes, buffer.itemsize)
        windows: Array = np.ndarray(shape, buffer.dtype, buffer, 0, strides)
        return windows

    def _resample_short(self, clip: Array) -> Windows:
        resampler = StreamResampler(self._filter.rate, self._filter.target_rate, self._filter.method)
        mono = scaled(self._preparation.apply(clip))
        cutter = WindowCutter(self._framing)
        windows: Array = np.concatenate(list(cut(self._resampled(resampler, mono), cutter)))
        self.examples, self.padded = cutter.examples, cutter.padded
        return windows

    @staticmethod
    def _resampled(resampler: StreamResampler, mono: Array) -> Iterator[Array]:
        yield resampler.push(mono)
        yield resampler.finish()
