"""torchaudio's default resampling filter (``sinc_interp_hann``): a sinc of 6 zero crossings within a Hann window.

Source: torchaudio.functional.resample with ``lowpass_filter_width=6`` and ``rolloff=0.99``, which audioldm_eval uses.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_ZEROS = 6

_ROLLOFF = 0.99


class HannSincFilter:
    """The filter from one rate to another: the weights of the inputs around an output, for any phase.

    Args:
        rate_in: Hz.
        rate_out: Hz.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        common = math.gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self._scale = min(1.0, rate_out / rate_in) * _ROLLOFF  # zero crossings per input
        self.half_width = math.ceil(_ZEROS / self._scale)

    def count(self, samples_in: int) -> int:
        """Return the resampled samples of a stream of ``samples_in``."""
        return -(-samples_in * self.up // self.down)

    def weights(self, outputs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return, for outputs by number within a block, their first tap in the buffer and 2 · half_width weights."""
        center, remainder = np.divmod(outputs * self.down, self.up)
        taps = np.arange(1 - self.half_width, self.half_width + 1)
        position = np.clip((taps - remainder[:, None] / self.up) * self._scale, -_ZEROS, _ZEROS)
        window = np.cos(position * math.pi / (2 * _ZEROS)) ** 2
        return center + 1, np.sinc(position) * window * self._scale
