"""Framing: waveform in windows of one example each, as many as the reference's framing counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import (
    EXAMPLE_FRAMES,
    EXAMPLE_HOP_S,
    EXAMPLE_SAMPLES,
    INT16_SCALE,
    SAMPLE_RATE,
    STFT_HOP,
    STFT_WINDOW,
)

FRAMES_PER_SECOND = 100

LONGEST_HOP_S = 60.0

Waveform = NDArray[Any]
"""float32, or int16 samples; its windows have the same type."""


def hop_samples(hop_s: float = EXAMPLE_HOP_S) -> int:
    """Return the samples between the starts of neighboring examples: a whole number of 10 ms frames.

    Raises:
        ValueError: ``hop_s`` is not a multiple of 10 ms, or not between 10 ms and a minute.
    """
    frames = hop_s * FRAMES_PER_SECOND
    if not 1 <= frames <= LONGEST_HOP_S * FRAMES_PER_SECOND or not math.isclose(frames, round(frames), abs_tol=1e-6):
        raise ValueError(
            f"hop_s={hop_s} is not a whole number of 10 ms frames, of a minute at most: use for example 0.96 or 0.48"
        )
    return round(frames) * STFT_HOP


def count_frames(samples: int) -> int:
    """Return the whole frames of a clip of ``samples`` at 16 kHz, as the reference counts them."""
    return 0 if samples < STFT_WINDOW else 1 + (samples - STFT_WINDOW) // STFT_HOP


class WindowCutter:
    """Cuts one clip's blocks of 16 kHz mono into windows [n, 15600]; holds less than a window between calls.

    There are 1 + ⌊(N − 15600) / hop⌋ whole ones of N samples, which is the reference's count: frames =
    1 + ⌊(N − 400) / 160⌋, examples = 1 + ⌊(frames − 96) / hop frames⌋.

    Args:
        hop_s: seconds between examples.
        pad_short: pad a clip too short for one example with zeros to a single one.
        pad_tail: pad the rest after the last whole example to one more, if it has a whole frame that no earlier example
            has.
        needed: samples that an example needs of the clip; its window has the first 15,600 of them.
        pad_to: samples to which a shorter clip is padded with zeros, before all else.

    Attributes:
        samples: samples pushed so far.
        examples: windows returned so far, padded ones included.
        padded: whether a padded window was returned.
    """

    def __init__(
        self,
        hop_s: float = EXAMPLE_HOP_S,
        *,
        pad_short: bool = True,
        pad_tail: bool = False,
        needed: int = EXAMPLE_SAMPLES,
        pad_to: int = 0,
    ) -> None:
        self._hop = hop_samples(hop_s)
        self._needed = needed
        self._pad_to = pad_to
        self._pad_short = pad_short
        self._pad_tail = pad_tail
        self._rest: Waveform = np.empty(0, np.float32)
        self._skip = 0
        self.samples = 0
        self.examples = 0
        self.padded = False

    def push(self, block: Waveform) -> Waveform:
        """Add [n] samples, float32 or int16 throughout; return the windows [k, 15600] (a view) that they complete."""
        self.samples += len(block)
        if self._skip:
            skipped = min(self._skip, len(block))
            self._skip -= skipped
            block = block[skipped:]
        waveform = np.concatenate([self._rest, block]) if len(self._rest) else block
        if len(waveform) < self._needed:
            self._rest = waveform.copy()
            return np.empty((0, EXAMPLE_SAMPLES), block.dtype)
        windows = np.lib.stride_tricks.sliding_window_view(waveform, self._needed)[:: self._hop, :EXAMPLE_SAMPLES]
        self.examples += len(windows)
        used = len(windows) * self._hop
        self._skip = max(0, used - len(waveform))
        self._rest = waveform[used:].copy()
        return windows

    def finish(self) -> Waveform:
        """Return the last windows [k, 15600], zero-padded, if the clip's end is to have any."""
        if 0 < self.samples < self._pad_to:
            windows = self.push(np.zeros(self._pad_to - self.samples, self._rest.dtype))
            if len(windows):
                self.padded = True
                return windows
        short = self.examples == 0 and self.samples > 0
        if not (self._pad_short if short else self._pad_tail and self._leaves_a_frame()):
            return np.empty((0, EXAMPLE_SAMPLES), self._rest.dtype)
        window = np.zeros((1, EXAMPLE_SAMPLES), self._rest.dtype)
        window[0, : len(self._rest)] = self._rest[:EXAMPLE_SAMPLES]
        self.examples += 1
        self.padded = True
        return window

    def _leaves_a_frame(self) -> bool:
        """Whether the next example would have a whole frame of the clip that no example has."""
        hop = self._hop // STFT_HOP
        covered = (self.examples - 1) * hop + EXAMPLE_FRAMES if self.examples else 0
        return count_frames(self.samples) > max(covered, self.examples * hop)


@dataclass(frozen=True)
class Framing:
    """How clips are cut into windows; see the configuration's group ``frontend``."""

    hop_s: float = EXAMPLE_HOP_S
    short_clips: str = "pad"
    tail: str = "drop"
    window_s: float = EXAMPLE_SAMPLES / SAMPLE_RATE
    min_duration_s: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether an example is of 15,600 samples, and none is padded but that of a clip too short for one."""
        needed, padded = round(self.window_s * SAMPLE_RATE), round(self.min_duration_s * SAMPLE_RATE)
        return self.tail == "drop" and needed <= EXAMPLE_SAMPLES and not padded

    def cutter(self) -> WindowCutter:
        """Return the cutter of one clip."""
        return WindowCutter(
            self.hop_s,
            pad_short=self.short_clips == "pad",
            pad_tail=self.tail == "pad",
            needed=max(EXAMPLE_SAMPLES, round(self.window_s * SAMPLE_RATE)),
            pad_to=round(self.min_duration_s * SAMPLE_RATE),
        )


class Cutter(Protocol):
    """Cuts one clip's blocks into windows; see ``WindowCutter``."""

    examples: int
    padded: bool

    @property
    def samples(self) -> int: ...

    def push(self, block: Waveform) -> Waveform: ...

    def finish(self) -> Waveform: ...


def cut(blocks: Iterator[Waveform], cutter: Cutter) -> Iterator[Waveform]:
    """Yield all windows of a clip's blocks, the padded last one included."""
    for block in blocks:
        yield cutter.push(block)
    yield cutter.finish()


Windows = NDArray[Any]
"""int16 or float32 [n, 15600]; see ``scaled``."""

_PAGE = 4096


def scaled(windows: Windows) -> NDArray[np.float32]:
    """Return windows as float32 in -1..1; int16 are divided by 32768, which is exact."""
    floats: NDArray[np.float32] = windows.astype(np.float32, copy=False)
    return floats * np.float32(INT16_SCALE) if windows.dtype == np.int16 else floats


def synthetic_windows(rows: int, dtype: str) -> Windows:
    """Return windows [rows, 15600] of noise for speed measurements, the same ones at every call."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (rows, EXAMPLE_SAMPLES)).astype(np.int16)
    return samples if dtype == "int16" else scaled(samples)


def slot_bytes(rows: int) -> int:
    """Return the bytes of a slot of ``rows`` float32 windows, in whole pages."""
    return whole_pages(rows * EXAMPLE_SAMPLES * 4)


def whole_pages(size: int) -> int:
    """Round bytes up to whole pages."""
    return -(-size // _PAGE) * _PAGE
