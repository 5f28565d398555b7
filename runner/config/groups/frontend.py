"""``frontend=``: from waveform to examples."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from runner.config.checks import one_of
from runner.core.errors import ConfigError


@dataclass
class FrontendConfig:
    """How a clip is resampled and cut into examples of 0.96 s."""

    hop_s: float = 0.96
    """Seconds from one example's start to the next, a multiple of 0.01; the release's 0.96 has no overlap."""

    short_clips: str = "pad"
    """Clips shorter than one example: pad (with zeros to one example, marked ``padded``) or skip."""

    tail: str = "drop"
    """Samples after the last whole example: drop (as the AudioSet release) or pad (one more example)."""

    resampler: str = "kaiser_best"
    """kaiser_best (resampy's filter, which the AudioSet release uses) or soxr (libsoxr's HQ)."""

    speed: float = 1.0
    """Speed at which audio is taken as played: 0.1 brings a bat's 40 kHz to 4 kHz. ``hop_s`` counts after it."""

    def __post_init__(self) -> None:
        one_of("frontend.short_clips", self.short_clips, ("pad", "skip"))
        one_of("frontend.tail", self.tail, ("drop", "pad"))
        one_of("frontend.resampler", self.resampler, ("kaiser_best", "soxr"))
        if not 0.001 <= self.speed <= 1000:
            raise ConfigError(f"frontend.speed={self.speed} is not from 0.001 to 1000: use for example 0.1")
        from runner.vggish.framing import hop_samples  # it needs NumPy, which --help does not

        try:
            hop_samples(self.hop_s)
        except ValueError as error:
            raise ConfigError(f"frontend.{error}") from None

    @property
    def file_hop_s(self) -> float:
        """Seconds of the file from one example's start to the next: ``hop_s`` times ``speed``."""
        return float(Fraction(str(self.hop_s)) * Fraction(str(self.speed)))
