"""How a clip is prepared between its decoder and its windows."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from runner.vggish.framing import scaled

if TYPE_CHECKING:
    from runner.audio.sources import Array


@dataclass(frozen=True)
class Preparation:
    """How a clip becomes mono at 16 kHz; see the configuration's group ``frontend``."""

    resampler: str = "kaiser_best"
    speed: float = 1.0

    def rate_of(self, sample_rate: int) -> int:
        """Return the rate in Hz that audio of a file's ``sample_rate`` is resampled from: times ``speed``, rounded."""
        return round(Fraction(str(self.speed)) * sample_rate)

    def apply(self, block: Array) -> Array:
        """Return one channel [n] of a block [n, channels]; int16 stays int16 at speed 1, and is float32 otherwise."""
        mono: Array = block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
        return mono if self.speed == 1 else scaled(mono)


AS_IT_IS = Preparation()
