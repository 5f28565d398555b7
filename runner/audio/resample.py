"""Resampling with the reference's filter, in blocks.

The filter is resampy's ``kaiser_best`` as published (version 0.4): a sinc of 50 zero crossings with roll-off 0.917,
tapered by a Kaiser window, tabulated 8,192 times per crossing and interpolated linearly.  Rates are rational, so its
phases repeat: L outputs for every M inputs.  A block of outputs is therefore a few matrix products with its inputs,
which is fast; rates whose L and M are too large for matrices take one row of weights per output instead.

Sums are float64: in float32 they cost half, but err by 1e-3 in log-mel on a loud tone next to silent bands (2e-4 here,
from rounding the result to float32).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runner.audio.sinc_filter import HannSincFilter
from runner.core.errors import ClipError

Array = NDArray[np.float32]

MIN_RATE = 1_000

MAX_RATE = 768_000
"""Hz; a file with a rate outside this range is treated as broken."""

_ZEROS = 50

_PER_ZERO = 8192

_ROLLOFF = 0.9173473712608761

_BETA = 12.984585247040012

_MATRIX_OUTPUTS = 16
"""Most outputs of a matrix: more have more zeros, fewer make products too small to be fast."""

_CACHED_SAMPLES = 1 << 15
"""Inputs of the matrices at a time: few enough to stay in a core's cache."""

_MAX_WEIGHTS = 2 << 20
"""Most weights of a block's matrices."""

_GATHER_WEIGHTS = 1 << 17
"""Weights that are gathered at a time: few enough to stay in a core's cache."""

_MAX_CACHED_WEIGHTS = 2 << 20
"""Most weights of a rate that are kept instead of computed for each block."""


class StreamResampler:
    """Resamples a stream of mono float32; the result does not depend on how the stream is cut.

    Args:
        rate_in: the stream's rate in Hz.
        rate_out: the rate in Hz that it is resampled to.
        method: ``kaiser_best`` (resampy's), ``soxr`` (libsoxr's HQ) or ``sinc_hann`` (torchaudio's default).

    Attributes:
        is_unchanged: whether the rates are the same; the stream may then be int16.

    Raises:
        ClipError: ``unsupported_rate``, if ``rate_in`` is below 1 kHz or above 768 kHz.
    """

    def __init__(self, rate_in: int, rate_out: int, method: str = "kaiser_best") -> None:
        if not MIN_RATE <= rate_in <= MAX_RATE:
            raise ClipError("unsupported_rate", f"{rate_in} Hz is not between {MIN_RATE} and {MAX_RATE} Hz")
        self._stream: _Stream
        self.is_unchanged = rate_in == rate_out
        if self.is_unchanged:
            self._stream = _Unchanged()
        else:
            self._stream = (
                _Soxr(rate_in, rate_out) if method == "soxr" else _Filtered(_kernel(rate_in, rate_out, method))
            )

    def push(self, block: Array) -> Array:
        """Add float32 [n] at the stream's rate; return the float32 [m] at ``rate_out`` that are known so far."""
        return self._stream.push(block)

    def finish(self) -> Array:
        """Return the rest, float32 [k]; in all there are ⌊N · rate_out / rate_in⌋ samples."""
        return self._stream.finish()


class _Stream(Protocol):
    def push(self, block: Array) -> Array: ...

    def finish(self) -> Array: ...


class _Unchanged:
    def push(self, block: Array) -> Array:
        return block

    def finish(self) -> Array:
        return np.empty(0, np.float32)


class _Soxr:
    def __init__(self, rate_in: int, rate_out: int) -> None:
        import soxr

        self._stream: Any = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality="HQ")

    def push(self, block: Array) -> Array:
        resampled: Array = self._stream.resample_chunk(block)
        return resampled

    def finish(self) -> Array:
        resampled: Array = self._stream.resample_chunk(np.empty(0, np.float32), last=True)
        return resampled


class _Filtered:
    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        # The buffer begins `half_width` samples before the next block's first input; the stream begins after zeros.
        self._buffer: Array = np.zeros(self._kernel.half_width, np.float32)
        self._samples_in = 0
        self._samples_out = 0

    def push(self, block: Array) -> Array:
        self._samples_in += len(block)
        self._buffer = np.concatenate([self._buffer, block])
        return self._resample_blocks()

    def finish(self) -> Array:
        kernel = self._kernel
        remaining = kernel.count(self._samples_in) - self._samples_out
        blocks = -(-remaining // kernel.outputs)
        padding = blocks * kernel.inputs + 2 * kernel.half_width - len(self._buffer)
        self._buffer = np.concatenate([self._buffer, np.zeros(max(padding, 0), np.float32)])
        return self._resample_blocks()[:remaining]

    def _resample_blocks(self) -> Array:
        """Resample all whole blocks in the buffer."""
        kernel = self._kernel
        count = max(0, (len(self._buffer) - 2 * kernel.half_width) // kernel.inputs)
        if not count:
            return np.empty(0, np.float32)
        used = count * kernel.inputs
        resampled = kernel.apply(self._buffer[: used + 2 * kernel.half_width], count)
        self._buffer = self._buffer[used:].copy()
        self._samples_out += len(resampled)
        return resampled


class Filter(Protocol):
    """The filter from one rate to another: ``up`` outputs for every ``down`` inputs."""

    up: int
    down: int
    half_width: int

    def count(self, samples_in: int) -> int:
        """Return the resampled samples of a stream of ``samples_in``."""

    def weights(self, outputs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return, for outputs by number within a block, their first tap in the buffer and 2 · half_width weights each;
        the buffer begins ``half_width`` inputs before the block."""


class _Kernel(Protocol):
    inputs: int
    outputs: int
    half_width: int
    count: Callable[[int], int]

    def apply(self, buffer: Array, blocks: int) -> Array:
        """Resample ``blocks`` blocks; the buffer has ``half_width`` samples before and after their inputs."""


class _MatrixKernel:
    """Computes a block of outputs as products of its inputs with matrices of a few outputs each.

    A matrix has few zeros, for its outputs are near each other.  A block is at least as long as the inputs of one
    matrix: rows of inputs, one per block, then do not overlap, and BLAS reads them from the buffer without a copy.
    """

    def __init__(self, filter_: Filter, repeats: int) -> None:
        self.inputs, self.outputs, self.half_width = filter_.down * repeats, filter_.up * repeats, filter_.half_width
        self.count: Callable[[int], int] = filter_.count
        self._matrices: list[tuple[int, NDArray[np.float64]]] = []  # each with its first input
        for start in range(0, self.outputs, _MATRIX_OUTPUTS):
            first, weights = filter_.weights(np.arange(start, min(start + _MATRIX_OUTPUTS, self.outputs)))
            rows = (first - first[0])[:, None] + np.arange(weights.shape[1])
            matrix = np.zeros((int(rows[-1, -1]) + 1, len(first)))
            matrix[rows, np.arange(len(first))[:, None]] = weights
            self._matrices.append((int(first[0]), matrix))

    def apply(self, buffer: Array, blocks: int) -> Array:
        resampled = np.empty((blocks, self.outputs), np.float32)
        at_once = max(1, _CACHED_SAMPLES // self.inputs)
        for block in range(0, blocks, at_once):
            rows = resampled[block : block + at_once]
            first = block * self.inputs
            samples = buffer[first : first + len(rows) * self.inputs + 2 * self.half_width].astype(np.float64)
            self._apply(samples, rows)
        return resampled.reshape(-1)

    def _apply(self, samples: NDArray[np.float64], resampled: NDArray[np.float32]) -> None:
        """Resample as many blocks as ``resampled`` [blocks, outputs] has rows, into it."""
        start, size = 0, samples.itemsize
        for first, matrix in self._matrices:
            width, outputs = matrix.shape
            windows: NDArray[np.float64] = np.ndarray(
                (len(resampled), width), np.float64, samples, first * size, (self.inputs * size, size)
            )
            resampled[:, start : start + outputs] = windows @ matrix
            start += outputs


class _PerSampleKernel:
    """Computes each output with its own row of weights, for rates with too many phases for a matrix."""

    def __init__(self, filter_: Filter) -> None:
        self.inputs, self.outputs, self.half_width = filter_.down, filter_.up, filter_.half_width
        self._filter = filter_
        self.count: Callable[[int], int] = filter_.count
        fits = self.outputs * 2 * self.half_width <= _MAX_CACHED_WEIGHTS
        self._all_weights = filter_.weights(np.arange(self.outputs)) if fits else None

    def apply(self, buffer: Array, blocks: int) -> Array:
        resampled = np.empty(blocks * self.outputs, np.float32)
        taps = np.lib.stride_tricks.sliding_window_view(buffer, 2 * self._filter.half_width)
        at_once = max(1, _GATHER_WEIGHTS // (2 * self._filter.half_width))
        for start in range(0, len(resampled), at_once):
            numbers = np.arange(start, min(start + at_once, len(resampled)))
            block, phase = np.divmod(numbers, self.outputs)
            if self._all_weights is None:
                first, weights = self._filter.weights(phase)
            else:
                first, weights = self._all_weights[0][phase], self._all_weights[1][phase]
            resampled[numbers] = np.einsum("ij,ij->i", taps[first + block * self.inputs], weights)
        return resampled


class _KaiserSincFilter:
    """The interpolated filter from one rate to another: the weights of the inputs around an output, for any phase."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._rate_in, self._rate_out, common = rate_in, rate_out, math.gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self._scale = min(1.0, rate_out / rate_in)
        self._step = int(self._scale * _PER_ZERO)
        self.half_width = -(-(_ZEROS * _PER_ZERO + 1) // self._step)
        self._values, self._slopes = self._rows()

    def count(self, samples_in: int) -> int:
        """Return the resampled samples of a stream of ``samples_in``, as resampy counts them."""
        return int(samples_in * float(self._rate_out) / float(self._rate_in))

    def weights(self, outputs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return, for outputs by number within a block, their first tap in the buffer and 2 · half_width weights
        each."""
        center, remainder = np.divmod(outputs * self.down, self.up)
        fraction = self._scale * remainder / self.up
        left = self._half_filter(fraction)
        right = self._half_filter(self._scale - fraction)
        weights = np.concatenate([left[:, ::-1], right], axis=1) * self._scale
        return center + 1, weights

    def _half_filter(self, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weights [n, half_width] of the taps at distance ``fraction`` and, each, one input further."""
        position = fraction * _PER_ZERO
        offset = position.astype(np.int64)
        weights = self._slopes[offset]
        weights *= (position - offset)[:, None]
        weights += self._values[offset]
        return weights

    def _rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cut the table into rows [offset, tap]: its values, and their differences to the next ones.

        An offset is less than the step from tap to tap, so the rows hold the table once.
        """
        table = _table()
        offset = np.arange(self._step + 1)[:, None]
        taps = np.arange(self.half_width)
        used = taps < (len(table) - offset) // self._step
        index = np.where(used, offset + taps * self._step, 0)
        values = np.where(used, table[index], 0.0)
        following = table[np.minimum(index + 1, len(table) - 1)]
        return values, np.where(used, following - values, 0.0)


@lru_cache(maxsize=1)
def _table() -> NDArray[np.float64]:
    """Return the right half of the tapered sinc, float64 [409601]."""
    points = _ZEROS * _PER_ZERO
    sinc = _ROLLOFF * np.sinc(_ROLLOFF * np.linspace(0, _ZEROS, points + 1))
    taper = np.i0(_BETA * np.sqrt(1 - (np.arange(points + 1) / points) ** 2)) / np.i0(_BETA)  # np.kaiser's right half
    table: NDArray[np.float64] = sinc * taper
    return table


def filter_of(rate_in: int, rate_out: int, method: str) -> Filter:
    """Return the filter from one rate in Hz to another: ``method`` is ``kaiser_best`` or ``sinc_hann``."""
    return HannSincFilter(rate_in, rate_out) if method == "sinc_hann" else _KaiserSincFilter(rate_in, rate_out)


@lru_cache(maxsize=8)
def _kernel(rate_in: int, rate_out: int, method: str) -> _Kernel:
    filter_ = filter_of(rate_in, rate_out, method)
    width = _MATRIX_OUTPUTS * filter_.down // filter_.up + 2 * filter_.half_width + 1  # the most inputs of a matrix
    repeats = -(-width // filter_.down)
    weights = filter_.up * repeats * width
    return _MatrixKernel(filter_, repeats) if weights <= _MAX_WEIGHTS else _PerSampleKernel(filter_)
