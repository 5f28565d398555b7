"""``frontend=``: from waveform to examples."""

from __future__ import annotations

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        one_of("frontend.short_clips", self.short_clips, ("pad", "skip"))
        one_of("frontend.tail", self.tail, ("drop", "pad"))
        one_of("frontend.resampler", self.resampler, ("kaiser_best", "soxr"))
        from runner.vggish.framing import hop_samples  # it needs NumPy, which --help does not

        try:
            hop_samples(self.hop_s)
        except ValueError as error:
            raise ConfigError(f"frontend.{error}") from None
