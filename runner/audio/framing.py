"""Framing: waveform in a model's windows, as many as the reference's framing counts for VGGish."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runner.core.samples import INT16_SCALE

if TYPE_CHECKING:
    from runner.core.model_spec import ModelSpec

Waveform = NDArray[Any]
"""float32, or int16 samples; its windows have the same type."""

Windows = NDArray[Any]
"""int16 or float32 [n, window_samples]; see ``scaled``."""

_PAGE = 4096


def longest_s(spec: ModelSpec) -> float:
    """Return the longest hop, and the most audio that a window may need: a minute, or the model's window if longer."""
    return max(60.0, spec.window_s)


def hop_samples(hop_s: float, spec: ModelSpec) -> int:
    """Return the samples between the starts of neighboring windows: a whole number of the model's frames.

    Raises:
        ValueError: ``hop_s`` is no multiple of the time between frames (of a sample, for a model without any), or not
            between that and ``longest_s``.
    """
    per_second = spec.sample_rate / spec.frame_hop
    frames = hop_s * per_second
    if not 1 <= frames <= longest_s(spec) * per_second or not math.isclose(frames, round(frames), abs_tol=1e-6):
        unit = f"{1000 / per_second:g} ms frames" if spec.frame_hop > 1 else f"samples at {spec.sample_rate} Hz"
        halves = [spec.hop_samples, spec.hop_samples / 2]
        examples = [str(samples / spec.sample_rate) for samples in halves if samples % spec.frame_hop == 0]
        longest = "a minute" if longest_s(spec) == 60 else f"{longest_s(spec):g} s"
        raise ValueError(
            f"hop_s={hop_s} is not a whole number of {unit}, of {longest} at most: use for example "
            + " or ".join(examples)
        )
    return round(frames) * spec.frame_hop


@dataclass(frozen=True)
class Framing:
    """How clips are cut into windows, in samples at the model's rate; see the configuration's group ``frontend``.

    Attributes:
        window_samples: length of a window.
        hop_samples: from one window to the next.
        needed_samples: those that a window needs of the clip; it has the first ``window_samples`` of them.
        frame_samples: length of one of the model's frames; 1 where it has none.
        frame_hop: from one frame to the next.
        short_clips: ``pad`` a clip too short for one window with zeros to a single one, or ``skip`` it.
        tail: ``drop`` the rest after the last whole window, or ``pad`` it to one more, if that has a whole frame that
            no earlier window has.
        min_samples: length to which a shorter clip is padded with zeros, before all else.
    """

    window_samples: int
    hop_samples: int
    needed_samples: int
    frame_samples: int = 1
    frame_hop: int = 1
    short_clips: str = "pad"
    tail: str = "drop"
    min_samples: int = 0

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        hop_s: float | None = None,
        *,
        short_clips: str = "pad",
        tail: str = "drop",
        window_s: float = 0.0,
        min_duration_s: float = 0.0,
    ) -> Framing:
        """Return a model's framing, with its own hop when ``hop_s`` is None.

        Raises:
            ValueError: ``hop_s`` is no whole number of frames.
        """
        return cls(
            spec.window_samples,
            spec.hop_samples if hop_s is None else hop_samples(hop_s, spec),
            max(spec.window_samples, round(window_s * spec.sample_rate)),
            spec.frame_samples,
            spec.frame_hop,
            short_clips,
            tail,
            round(min_duration_s * spec.sample_rate),
        )

    @property
    def is_plain(self) -> bool:
        """Whether a window needs no more than its samples, and none is padded but that of a clip too short for one."""
        return self.tail == "drop" and self.needed_samples == self.window_samples and not self.min_samples

    def count_frames(self, samples: int) -> int:
        """Return the whole frames of so many samples, as the reference counts VGGish's."""
        return 0 if samples < self.frame_samples else 1 + (samples - self.frame_samples) // self.frame_hop


class WindowCutter:
    """Cuts one clip's blocks, mono at the model's rate, into windows [n, window]; holds less than one between calls.

    There are 1 + ⌊(N − window) / hop⌋ whole ones of N samples.  For VGGish that is the reference's count: frames =
    1 + ⌊(N − 400) / 160⌋, examples = 1 + ⌊(frames − 96) / hop frames⌋.

    Args:
        framing: of the run.

    Attributes:
        samples: samples pushed so far.
        examples: windows returned so far, padded ones included.
        padded: whether a padded window was returned.
    """

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._rest: Waveform = np.empty(0, np.float32)
        self._skip = 0
        self.samples = 0
        self.examples = 0
        self.padded = False

    def push(self, block: Waveform) -> Waveform:
        """Add [n] samples, float32 or int16 throughout; return the windows [k, window] (a view) that they complete."""
        framing = self._framing
        self.samples += len(block)
        if self._skip:
            skipped = min(self._skip, len(block))
            self._skip -= skipped
            block = block[skipped:]
        waveform = np.concatenate([self._rest, block]) if len(self._rest) else block
        if len(waveform) < framing.needed_samples:
            self._rest = waveform.copy()
            return np.empty((0, framing.window_samples), block.dtype)
        starts = np.lib.stride_tricks.sliding_window_view(waveform, framing.needed_samples)[:: framing.hop_samples]
        windows = starts[:, : framing.window_samples]
        self.examples += len(windows)
        used = len(windows) * framing.hop_samples
        self._skip = max(0, used - len(waveform))
        self._rest = waveform[used:].copy()
        return windows

    def finish(self) -> Waveform:
        """Return the last windows [k, window], zero-padded, if the clip's end is to have any."""
        framing = self._framing
        if 0 < self.samples < framing.min_samples:
            windows = self.push(np.zeros(framing.min_samples - self.samples, self._rest.dtype))
            if len(windows):
                self.padded = True
                return windows
        short = self.examples == 0 and self.samples > 0
        pads = framing.short_clips == "pad" if short else framing.tail == "pad" and self._leaves_a_frame()
        if not pads:
            return np.empty((0, framing.window_samples), self._rest.dtype)
        window = np.zeros((1, framing.window_samples), self._rest.dtype)
        window[0, : len(self._rest)] = self._rest[: framing.window_samples]
        self.examples += 1
        self.padded = True
        return window

    def _leaves_a_frame(self) -> bool:
        """Whether the next window would have a whole frame of the clip that no window has."""
        framing = self._framing
        hop, window = framing.hop_samples // framing.frame_hop, framing.count_frames(framing.window_samples)
        covered = (self.examples - 1) * hop + window if self.examples else 0
        return framing.count_frames(self.samples) > max(covered, self.examples * hop)


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


def scaled(windows: Windows) -> NDArray[np.float32]:
    """Return windows as float32 in -1..1; int16 are divided by 32768, which is exact."""
    floats: NDArray[np.float32] = windows.astype(np.float32, copy=False)
    return floats * np.float32(INT16_SCALE) if windows.dtype == np.int16 else floats


def synthetic_windows(rows: int, window_samples: int, dtype: str) -> Windows:
    """Return windows [rows, window_samples] of noise for speed measurements, the same ones at every call."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (rows, window_samples)).astype(np.int16)
    return samples if dtype == "int16" else scaled(samples)


def slot_bytes(rows: int, window_samples: int) -> int:
    """Return the bytes of a slot of ``rows`` float32 windows, in whole pages."""
    return whole_pages(rows * window_samples * 4)


def whole_pages(size: int) -> int:
    """Round bytes up to whole pages."""
    return -(-size // _PAGE) * _PAGE
