"""``frontend=``: from waveform to examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from runner.config.checks import one_of
from runner.core.errors import ConfigError

if TYPE_CHECKING:
    from runner.audio.framing import Framing
    from runner.audio.preparation import Preparation
    from runner.core.model_spec import ModelSpec


@dataclass
class FrontendConfig:
    """How a clip is read, resampled and cut into examples, for VGGish of 0.96 s.

    The options ``google``, ``torchvggish`` and ``audioldm`` prepare a clip as those tools do, so that Fréchet Audio
    Distances can be compared with theirs.
    """

    hop_s: float = 0.96
    """Seconds from one example's start to the next, a multiple of the model's frames: for VGGish of 0.01.

    The release's 0.96 has no overlap.
    """

    short_clips: str = "pad"
    """Clips shorter than one example: pad (with zeros to one example, marked ``padded``) or skip."""

    tail: str = "drop"
    """Samples after the last whole example: drop (as the AudioSet release) or pad (one more example)."""

    resampler: str = "kaiser_best"
    """kaiser_best (resampy's, as the AudioSet release), soxr (libsoxr's HQ) or sinc_hann (torchaudio's default)."""

    channels: str = "mean"
    """Channels of a clip: mean (their average) or first (the first one alone)."""

    normalize: str = "none"
    """Level of a clip: none (as it is), peak (divided by its largest sample) or mean (its mean subtracted).

    The clip is decoded twice for peak and mean.
    """

    window_s: float = 0.975
    """Seconds of audio that an example needs; it has the first of them, as many as the model takes (VGGish: 0.975)."""

    min_duration_s: float = 0.0
    """Clips shorter than this many seconds are first padded with zeros to them, and marked ``padded``."""

    speed: float = 1.0
    """Speed at which audio is taken as played: 0.1 brings 40 kHz to 4 kHz. The group's seconds count after it."""

    def __post_init__(self) -> None:
        one_of("frontend.short_clips", self.short_clips, ("pad", "skip"))
        one_of("frontend.tail", self.tail, ("drop", "pad"))
        one_of("frontend.resampler", self.resampler, ("kaiser_best", "soxr", "sinc_hann"))
        one_of("frontend.channels", self.channels, ("mean", "first"))
        one_of("frontend.normalize", self.normalize, ("none", "peak", "mean"))
        if not 0 <= self.min_duration_s <= 60:
            raise ConfigError(f"frontend.min_duration_s={self.min_duration_s} is not from 0 to 60 seconds")
        if not 0.001 <= self.speed <= 1000:
            raise ConfigError(f"frontend.speed={self.speed} is not from 0.001 to 1000: use for example 0.1")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> FrontendConfig:
        """Return the front end of a run's files by their metadata, which have it as ``frontend.hop_s`` and so on.

        A key that they lack has its default.
        """
        values = vars(cls())
        known = {name: metadata[key] for name in values if (key := f"frontend.{name}") in metadata}
        return cls(**values | {name: type(values[name])(text) for name, text in known.items()})

    def preparation(self, spec: ModelSpec) -> Preparation:
        """Return how a clip becomes mono at the model's rate, before its level is known."""
        from runner.audio.preparation import Preparation

        return Preparation(
            spec.sample_rate, self.resampler, self.channels, self.normalize, self.speed, spec.takes_int16
        )

    def framing(self, spec: ModelSpec) -> Framing:
        """Return how a clip's waveform is cut into the model's windows.

        Raises:
            ConfigError: ``window_s`` or ``hop_s`` does not fit the model.
        """
        from runner.audio.framing import Framing, longest_s  # it needs NumPy, which --help does not

        needed = self.window_s * spec.sample_rate  # within half a sample of the window, which may be no round number
        if not spec.window_samples - 0.5 <= needed <= longest_s(spec) * spec.sample_rate:
            raise ConfigError(
                f"frontend.window_s={self.window_s} is not from {spec.window_s:g} to {longest_s(spec):g} seconds: "
                f"use for example {math.ceil(spec.window_s):.1f}"
            )
        try:
            return Framing.of(
                spec,
                self.hop_s,
                short_clips=self.short_clips,
                tail=self.tail,
                window_s=self.window_s,
                min_duration_s=self.min_duration_s,
            )
        except ValueError as error:
            raise ConfigError(f"frontend.{error}") from None

    @property
    def file_hop_s(self) -> float:
        """Seconds of the file from one example's start to the next: ``hop_s`` times ``speed``."""
        return float(Fraction(str(self.hop_s)) * Fraction(str(self.speed)))
