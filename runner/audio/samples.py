"""Conversion of arrays to samples in -1..1, and the check that they are a waveform.

A ReLU or max-pool on a CPU turns NaN into a number, and values far beyond full scale give meaningless embeddings, so
both are refused before they are embedded.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.audio.framing import scaled
from runner.audio.preparation import channel_mean
from runner.audio.resample import MAX_RATE, MIN_RATE
from runner.core.samples import LARGEST_SAMPLE

Samples = NDArray[Any]
"""float32 in -1..1, with headroom up to ``LARGEST_SAMPLE``, or int16."""

_TYPES = "int16, int32 or uint8 samples as WAV files have them, or floats in -1..1"

_INT32_SCALE = np.float32(2.0**-31)

_UINT8_SCALE, _UINT8_ZERO = np.float32(2.0**-7), np.float32(128)


_SURE_SUM = LARGEST_SAMPLE**2 / 2
"""A sum of squares, rounded, below which no sample is larger than ``LARGEST_SAMPLE``."""


def fault_of(samples: NDArray[Any]) -> tuple[str, str] | None:
    """Return why floats of any shape are no samples, as (reason code, detail); None where they are, and for
    integers."""
    if samples.dtype.kind != "f" or not samples.size:
        return None
    if (
        samples.dtype == np.float32 and samples.flags.c_contiguous
    ):  # the sum of squares takes one pass, the extremes two
        flat = samples.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.dot(flat, flat) < _SURE_SUM:  # False for NaN
                return None
    low, high = float(samples.min()), float(samples.max())  # NaN where any is
    if low >= -LARGEST_SAMPLE and high <= LARGEST_SAMPLE:
        return None
    if not np.isfinite([low, high]).all():
        return "non_finite", "NaN or infinite samples"
    scale = f"full scale is 1, and beyond {LARGEST_SAMPLE:g} is no waveform: divide 16-bit ones by 32768"
    return "out_of_range", f"samples up to {max(-low, high):.4g}, where {scale}"


def as_samples(array: Any, name: str) -> Samples:
    """Convert an array of any shape to native int16, or to float32 in -1..1.

    Args:
        array: int16 of any byte order, int32 (whose full scale is 2³¹), uint8 (whose zero is 128), or floats.
        name: its name in the error.

    Raises:
        ValueError: another type.
    """
    try:
        numbers = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} is no array of numbers ({error}): give {_TYPES}") from None
    native = numbers.dtype.newbyteorder("=")
    if native == np.int16:
        return numbers.astype(np.int16, copy=False)
    if native not in (np.int32, np.uint8) and native.kind != "f":
        raise ValueError(f"{name} has type {numbers.dtype}, which says no full scale: give {_TYPES}")
    with np.errstate(over="ignore"):
        floats: NDArray[np.float32] = numbers.astype(np.float32, copy=False)
    if native == np.int32:
        floats *= _INT32_SCALE
    elif native == np.uint8:
        floats -= _UINT8_ZERO
        floats *= _UINT8_SCALE
    return floats


def as_mono(waveform: Any) -> Samples:
    """Convert one clip to int16 or float32 [samples], scaled and with channels averaged, as reading its file does.

    Args:
        waveform: [samples] or [samples, channels], of a type that ``as_samples`` takes.

    Raises:
        ValueError: another shape or type, no samples, or values that are no waveform.
    """
    samples = as_samples(waveform, "waveform")
    shape = "waveform has shape " + str(samples.shape)
    if samples.ndim not in (1, 2):
        raise ValueError(f"{shape}: give [samples] or [samples, channels]")
    if not samples.size:
        raise ValueError(f"{shape}, which holds no samples: leave empty clips out")
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        raise ValueError(f"{shape}, more channels than samples: give [samples, channels], as waveform.T")
    if fault := fault_of(samples):
        raise ValueError(f"waveform has {fault[1]}")
    if samples.ndim == 1:
        return samples
    return samples[:, 0] if samples.shape[1] == 1 else channel_mean(scaled(samples))


def as_rate(sample_rate: Any) -> int:
    """Convert a sample rate to whole Hz.

    Raises:
        ValueError: it is not a whole number, or outside the supported range.
    """
    if isinstance(sample_rate, float | np.floating) and float(sample_rate).is_integer():
        sample_rate = int(sample_rate)
    try:
        rate = -1 if isinstance(sample_rate, bool | np.bool_) else operator.index(sample_rate)
    except TypeError:
        rate = -1
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"sample_rate={sample_rate!r} is no whole number of Hz from {MIN_RATE} to {MAX_RATE}")
    return rate
