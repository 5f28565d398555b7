"""The parity gate: before any clip, a device must agree with the CPU's float32 answers on eight fixed signals."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.config import ToleranceConfig
from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_SAMPLES, INT16_SCALE, SAMPLE_RATE

log = logging.getLogger(__name__)

Array = NDArray[np.float32]

_REFERENCE_VERSION = 1
"""To be raised when the reference's own computation changes: cached answers of an older one are not used."""


def fixed_signals() -> Array:
    """The eight signals, one window each, float32 [8, 15600] in -1..1: the same everywhere, always.

    All values are those of 16-bit samples, so that ``as_int16`` has the same signals.

    A tone, two tones 40 dB apart, a chirp over the whole band, noise, silence, an impulse, clipped speech-like (voiced
    harmonics under a syllable's envelope), noise at -80 dB.
    """
    t = np.arange(EXAMPLE_SAMPLES) / SAMPLE_RATE
    rng = np.random.Generator(np.random.PCG64(1))
    impulse = np.zeros(EXAMPLE_SAMPLES)
    impulse[EXAMPLE_SAMPLES // 3] = 1.0
    chirp_rate = (7800.0 - 50.0) / t[-1]
    voiced = sum(np.sin(2 * np.pi * 120.0 * k * t + k * k) / k for k in range(1, 30))
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4.0 * t)
    rows = [
        0.5 * np.sin(2 * np.pi * 1000.0 * t),
        0.9 * np.sin(2 * np.pi * 220.0 * t) + 0.009 * np.sin(2 * np.pi * 3520.0 * t),
        0.8 * np.sin(2 * np.pi * (50.0 + 0.5 * chirp_rate * t) * t),
        0.3 * rng.uniform(-1.0, 1.0, EXAMPLE_SAMPLES),
        np.zeros(EXAMPLE_SAMPLES),
        impulse,
        np.clip(1.5 * voiced * syllables, -1.0, 1.0),
        1e-4 * rng.uniform(-1.0, 1.0, EXAMPLE_SAMPLES),
    ]
    samples = np.clip(np.round(np.stack(rows) / INT16_SCALE), -32768, 32767)
    return (samples * INT16_SCALE).astype(np.float32)


def as_int16(signals: Array) -> NDArray[np.int16]:
    """The signals as 16-bit samples."""
    return (signals / INT16_SCALE).astype(np.int16)


@dataclass(frozen=True)
class Parity:
    """How far a device's embeddings are from the expected ones.

    ``max_abs_err``: the largest difference; ``rel_err``: that over the largest expected value; ``min_cosine``: the
    least cosine of an embedding with its expected one; ``scale_err``: how far the best common factor between the two
    is from 1, which sees a small bias under a coarse precision's noise.  NaN or infinity anywhere makes all of them
    infinite and the cosine -1.
    """

    max_abs_err: float
    rel_err: float
    min_cosine: float
    scale_err: float

    def misses(self, tolerance: ToleranceConfig) -> list[str]:
        """What is out of tolerance, in words; empty if nothing is."""
        if not np.isfinite(self.max_abs_err):
            return ["the device's embeddings hold NaN or infinity"]
        found = []
        for name in ("rel_err", "scale_err"):
            if getattr(self, name) > getattr(tolerance, name):
                found.append(f"{name} {getattr(self, name):.2g} is above {getattr(tolerance, name):.2g}")
        if self.min_cosine < tolerance.min_cosine:
            found.append(f"min_cosine {self.min_cosine:.7f} is below {tolerance.min_cosine:.7f}")
        return found

    def metrics(self) -> dict[str, float]:
        """The measures as metrics, ``parity_…``; those that are finite, since JSON has no others."""
        return {f"parity_{name}": value for name, value in asdict(self).items() if np.isfinite(value)}


def compare(found: Array, expected: Array) -> Parity:
    """Measure embeddings against the expected ones, both float32 [n, 128].

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"{list(found.shape)} embeddings were returned where {list(expected.shape)} were expected")
    if not np.isfinite(found).all():
        return Parity(np.inf, np.inf, -1.0, np.inf)
    got, want = found.astype(np.float64), expected.astype(np.float64)
    worst = float(np.abs(got - want).max())
    dots, squares = (got * want).sum(axis=1), (want * want).sum(axis=1)
    norms = np.linalg.norm(got, axis=1) * np.sqrt(squares)
    cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), np.abs(got - want).max(axis=1) == 0)
    largest = max(float(np.abs(want).max()), np.finfo(np.float32).tiny)
    scale = float(dots.sum() / max(float(squares.sum()), np.finfo(np.float64).tiny))
    return Parity(worst, worst / largest, float(cosines.min()), abs(scale - 1.0) if squares.any() else worst)


def measure(embed: Callable[[Any], Array], expected: Array, rows: int = 8, dtype: str = "float32") -> Parity:
    """Embed the fixed signals, repeated to ``rows`` (the shape that the run will use), and compare.

    Args:
        embed: the session, windows [n, 15600] to float32 [n, 128].
        expected: the reference's answers, float32 [8, 128].
        rows: how many to embed at once; at least the eight.
        dtype: of the windows, float32 or int16.
    """
    which = np.arange(max(rows, len(expected))) % len(expected)
    signals = fixed_signals()
    found = embed((as_int16(signals) if dtype == "int16" else signals)[which])
    return compare(found, expected[which])


class AnswerCache:
    """The reference's answers by weights checksum, so that they are computed once on a machine.

    Args:
        folder: where they lie; a file that can't be read is computed anew, a folder that can't be written costs that
            each time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, checksum: str, compute: Callable[[Array], Array]) -> tuple[Array, bool]:
        """The answers for these weights, float32 [8, 128], and whether they were there already."""
        signals = fixed_signals()
        path = self._folder / f"{self._key(checksum, signals)}.npy"
        try:
            found = np.load(path, allow_pickle=False)
            if found.shape == (len(signals), EMBEDDING_SIZE) and found.dtype == np.float32 and np.isfinite(found).all():
                return found, True
        except (OSError, ValueError, EOFError):
            pass
        answers = compute(signals)
        self._put(path, answers)
        return answers, False

    @staticmethod
    def _key(checksum: str, signals: Array) -> str:
        digest = hashlib.sha256(f"{_REFERENCE_VERSION} {checksum} ".encode() + signals.tobytes())
        return digest.hexdigest()[:40]

    def _put(self, path: Path, answers: Array) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.save(file, answers)
            temporary.replace(path)
        except OSError as error:
            log.info("the parity reference is not kept (%s): it is computed at each run", error)


def report(parity: Parity, tolerance: ToleranceConfig, *, action: str, cached: bool) -> dict[str, Any]:
    """What result.json says of the gate."""
    misses = parity.misses(tolerance)
    return {
        "passed": not misses,
        "misses": misses,
        "action": action,
        "tolerance": asdict(tolerance),
        "reference": "CPU float32, from the cache" if cached else "CPU float32, computed now",
    }
