"""Windows at their file's own rate and channels, for a device that resamples.

Such a window has the inputs of one example's 15,600 outputs, those that the filter reaches beyond both ends included,
so a device can resample it by itself.  Examples begin at phase 0 of the filter: their hop is a whole number of the
rate's periods, or the rate is resampled on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.audio.resample import StreamResampler, filter_of
from runner.vggish.constants import EXAMPLE_SAMPLES, SAMPLE_RATE
from runner.vggish.framing import cut, hop_samples, scaled

if TYPE_CHECKING:
    from runner.audio.preparation import Preparation
    from runner.vggish.framing import Framing, Windows

Array = NDArray[Any]

RATES = frozenset({8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000})
"""Hz; other rates are resampled on the host, so that the programs that a device compiles are few."""

_LEAST_HOP_S = 0.24
"""Seconds; with shorter hops, windows overlap so much that copying them takes longer than resampling once."""

METHODS = ("kaiser_best", "sinc_hann")
"""Resamplers whose filter is a matrix."""


class WindowKind(NamedTuple):
    """What the windows of a slot are: at 16 kHz [15600], or at another rate [frames, channels].

    Attributes:
        dtype: int16 or float32.
        rate: Hz.
        frames: length.
        channels: 1, or 2 to be averaged.
    """

    dtype: str
    rate: int = SAMPLE_RATE
    frames: int = EXAMPLE_SAMPLES
    channels: int = 1

    @classmethod
    def of(cls, windows: Array, rate: int) -> WindowKind:
        """Return the kind of windows: [n, 15600] at 16 kHz, or [n, frames, channels] at ``rate``."""
        if windows.ndim == 2:
            return cls(windows.dtype.name)
        return cls(windows.dtype.name, rate, *windows.shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one window."""
        return (self.frames,) if self.rate == SAMPLE_RATE else (self.frames, self.channels)

    @property
    def bytes(self) -> int:
        """Bytes of one window."""
        return self.frames * self.channels * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class SourceWindows:
    """A batch of windows at a rate other than 16 kHz.

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
    """The resampling of windows of one rate, as a product of matrices.

    A window is cut into ``blocks`` + 1 blocks of ``inputs`` frames; each two neighbors give ``outputs`` samples at
    16 kHz: [blocks, 2 · inputs] · [2 · inputs, outputs].

    Attributes:
        rate: Hz.
        method: the resampler.
        inputs: frames of a block.
        blocks: products.
        half_width: frames of a window before its first output.
        weights: float64 [2 · inputs, outputs].
        hop: frames between windows.
        count: function from the frames of a clip to its samples at 16 kHz.
    """

    rate: int
    method: str
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
        """Samples at 16 kHz of two blocks."""
        return int(self.weights.shape[1])

    def apply(self, windows: Array) -> NDArray[np.float32]:
        """Resample windows [n, frames, channels] on the host to float32 [n, 15600]."""
        mono = scaled(windows).mean(axis=2, dtype=np.float32).astype(np.float64)
        blocks = mono.reshape(-1, self.blocks + 1, self.inputs)
        resampled = blocks[:, :-1] @ self.weights[: self.inputs] + blocks[:, 1:] @ self.weights[self.inputs :]
        rows = resampled.reshape(-1, self.blocks * self.outputs)
        flat: NDArray[np.float32] = rows[:, :EXAMPLE_SAMPLES].astype(np.float32)
        return flat


@lru_cache(maxsize=2 * len(RATES))
def window_filter(rate: int, method: str, hop_s: float) -> WindowFilter | None:
    """Return the filter of a rate's windows; None where the rate is to be resampled on the host.

    Args:
        rate: Hz.
        method: the resampler, as ``StreamResampler``'s.
        hop_s: seconds between examples.
    """
    if rate not in RATES or method not in METHODS or hop_s < _LEAST_HOP_S:
        return None
    filter_ = filter_of(rate, method)
    hop_periods, remainder = divmod(hop_samples(hop_s), filter_.up)
    if remainder:
        return None
    periods = -(-(2 * filter_.half_width + 1) // filter_.down)  # so that two blocks have all inputs of one's outputs
    inputs, outputs = filter_.down * periods, filter_.up * periods
    first, taps = filter_.weights(np.arange(outputs))
    weights = np.zeros((2 * inputs, outputs))
    weights[first[:, None] + np.arange(taps.shape[1]), np.arange(outputs)[:, None]] = taps
    blocks = -(-EXAMPLE_SAMPLES // outputs)
    return WindowFilter(
        rate, method, inputs, blocks, filter_.half_width, weights, hop_periods * filter_.down, filter_.count
    )


class SourceWindowCutter:
    """Cuts one clip's blocks into windows at their own rate, as many as ``WindowCutter`` cuts at 16 kHz.

    A clip too short for one example is resampled here, and its window is one at 16 kHz.

    Args:
        window_filter: of the blocks' rate.
        preparation: of the clip.
        framing: of the run, without padding to a length or at a clip's end.

    Attributes:
        samples: samples at 16 kHz that the blocks so far come to.
        examples: windows returned so far.
        padded: whether a padded window was returned.
    """

    def __init__(self, window_filter: WindowFilter, preparation: Preparation, framing: Framing) -> None:
        self._filter = window_filter
        self._preparation = preparation
        self._framing = framing
        self._hop_samples = hop_samples(framing.hop_s)
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
        block = self._preparation.kept_channels(block)
        self._frames += len(block)
        if self._buffer is None:
            self._buffer = np.zeros((self._filter.half_width, block.shape[1]), block.dtype)
        skipped = min(self._skip, len(block))
        self._skip -= skipped
        return self._cut(block[skipped:])

    def finish(self) -> Array:
        """Return the last windows, or the padded one of a short clip, float32 [k, 15600]."""
        if self._buffer is None:
            return np.empty((0, EXAMPLE_SAMPLES), np.float32)
        if self.samples < EXAMPLE_SAMPLES:
            return self._resample_short(self._buffer[self._filter.half_width :])
        remaining = 1 + (self.samples - EXAMPLE_SAMPLES) // self._hop_samples - self.examples
        needed = (remaining - 1) * self._filter.hop + self._filter.frames - len(self._buffer) + self._skip
        silence = np.zeros((max(0, needed), self._buffer.shape[1]), self._buffer.dtype)
        return self._cut(silence[self._skip :])[:remaining]

    def _cut(self, block: Array) -> Array:
        """Cut the windows that a block completes, and buffer the rest."""
        assert self._buffer is not None
        window_filter, buffer = self._filter, np.concatenate([self._buffer, block])
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
        resampler = StreamResampler(self._filter.rate, self._preparation.resampler)
        mono = scaled(self._preparation.apply(clip))
        cutter = self._framing.cutter()
        windows: Array = np.concatenate(list(cut(self._resampled(resampler, mono), cutter)))
        self.examples, self.padded = cutter.examples, cutter.padded
        return windows

    @staticmethod
    def _resampled(resampler: StreamResampler, mono: Array) -> Iterator[Array]:
        yield resampler.push(mono)
        yield resampler.finish()
