"""What is done to a clip between decoder and windows: its channels, its level, its resampling."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.audio.framing import scaled
from runner.core.samples import INT16_SCALE

if TYPE_CHECKING:
    from runner.audio.sources import Array


@dataclass(frozen=True)
class Preparation:
    """How a clip becomes mono at ``rate`` Hz, the model's; see the configuration's group ``frontend``.

    ``offset`` is subtracted from its samples, which are then multiplied by ``gain``: the clip's own level, which
    ``normalize`` asks for and ``reader.leveled`` measures.  ``takes_int16`` says whether the model takes 16-bit samples
    as well as float32 ones.
    """

    rate: int
    resampler: str = "kaiser_best"
    channels: str = "mean"
    normalize: str = "none"
    speed: float = 1.0
    takes_int16: bool = True
    offset: float = 0.0
    gain: float = 1.0

    @property
    def needs_level(self) -> bool:
        """Whether a clip is read once for its level before it is read for its waveform."""
        return self.normalize != "none"

    @property
    def keeps_int16(self) -> bool:
        """Whether 16-bit mono samples at ``rate`` stay int16: nothing resamples or scales them."""
        return self.takes_int16 and self.speed == 1 and not self.needs_level

    def rate_of(self, sample_rate: int) -> int:
        """Return the rate in Hz that audio of a file's ``sample_rate`` is resampled from: times ``speed``, rounded."""
        return round(Fraction(str(self.speed)) * sample_rate)

    @property
    def keeps_level(self) -> bool:
        """Whether samples keep their level."""
        return (self.offset, self.gain) == (0.0, 1.0)

    def device_channels(self, block: Array) -> tuple[int, np.dtype[Any]]:
        """Return the number and the type of the channels that a device takes of a block [n, channels]: one, or two of
        int16, which it averages."""
        channels = block.shape[1]
        if channels == 1 or self.channels == "first":
            return 1, block.dtype
        if channels == 2 and block.dtype == np.int16:
            return 2, block.dtype
        return 1, np.dtype(np.float32)

    def copy_device_channels(self, block: Array, target: Array) -> None:
        """Write the channels that a device takes of a block [n, channels] to ``target`` [n, device channels]."""
        channels = target.shape[1]
        if channels == block.shape[1] or self.channels == "first":
            target[:] = block[:, :channels]
        else:
            channel_mean(block, target[:, 0])

    def apply(self, block: Array) -> Array:
        """Return one channel [n] of a block [n, channels], at its level; int16 of one channel stays so at level and
        speed 1, where the model takes it."""
        if block.shape[1] == 1:
            mono: Array = block[:, 0]
        else:
            mono = scaled(block[:, 0]) if self.channels == "first" else channel_mean(block)
        if self.keeps_level:
            return mono if self.takes_int16 and self.speed == 1 else scaled(mono)
        return ((scaled(mono).astype(np.float64) - self.offset) * self.gain).astype(np.float32)


def channel_mean(samples: Array, out: Array | None = None) -> Array:
    """Return the mean [n], float32 in -1..1, of the channels of samples [n, channels], float32 or int16, in
    ``out`` where that is given."""
    scale = np.float32(INT16_SCALE if samples.dtype == np.int16 else 1)
    if samples.shape[1] == 2:  # the sum gives the same bits, 12 times as fast
        mean: Array = np.add(samples[:, 0], samples[:, 1], out=out, dtype=np.float32)
        mean *= scale * np.float32(0.5)
    else:
        mean = scaled(samples).mean(axis=1, dtype=np.float32, out=out)
    return mean
