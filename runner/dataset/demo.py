"""The demo clips: forty short labeled sounds, synthesized once, the same on every machine.

They exist so that the first command works with no data and no network, and so that tests have audio in every common
format, rate and channel count.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import DatasetError
from runner.core.files import commit_folder

Waveform = NDArray[np.float64]

RECIPE = "1"
"""Version of the clips: a folder of another version is replaced."""

_MARKER = ".recipe"

_FORMATS = (
    ("wav", "PCM_16"),
    ("flac", "PCM_16"),
    ("ogg", "VORBIS"),
    ("mp3", "MPEG_LAYER_III"),
    ("wav", "PCM_24"),
    ("wav", "FLOAT"),
)

_RATES = (16_000, 44_100, 48_000, 22_050, 8_000, 32_000)

_SECONDS = (3.0, 10.0, 5.0, 20.0, 4.2)

_CLIPS_PER_LABEL = 5


def demo_clips(outputs: Path) -> Path:
    """Return the folder of the demo clips, ``outputs/demo``; synthesize them first if they are missing.

    Several processes may call it at once.

    Raises:
        DatasetError: ``outputs/demo`` holds something else.
    """
    from filelock import FileLock

    folder = outputs / "demo"
    if _read_recipe(folder) != RECIPE:
        outputs.mkdir(parents=True, exist_ok=True)
        with FileLock(outputs / ".demo.lock"):
            if _read_recipe(folder) != RECIPE:  # another process may have made it while this one waited
                _make(folder)
    return folder


def _make(folder: Path) -> None:
    if folder.exists() and _read_recipe(folder) is None:
        raise DatasetError(
            f"{folder}, the folder of the demo clips, holds other files: move it away, or choose another paths.outputs"
        )
    building, stale = folder.with_name(".demo.building"), folder.with_name(".demo.stale")
    for leftover in (building, stale):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    _synthesize(building)
    (building / _MARKER).write_text(RECIPE)
    if folder.exists():
        folder.rename(stale)
    commit_folder(building, folder)
    shutil.rmtree(stale, ignore_errors=True)


def _read_recipe(folder: Path) -> str | None:
    marker = folder / _MARKER
    return marker.read_text() if marker.is_file() else None


def _synthesize(folder: Path) -> None:
    import soundfile

    for number, (label, name, waveform, rate, channels) in enumerate(_clips()):
        extension, subtype = _FORMATS[number % len(_FORMATS)]
        path = folder / label / f"{name}.{extension}"
        path.parent.mkdir(exist_ok=True)
        stereo = np.stack([waveform, 0.7 * np.roll(waveform, rate // 100)], axis=1)
        soundfile.write(path, stereo if channels == 2 else waveform, rate, subtype=subtype)


def _clips() -> Iterator[tuple[str, str, Waveform, int, int]]:
    number = 0
    for label, make in _SOUNDS.items():
        for number_of_label in range(_CLIPS_PER_LABEL):
            rng = np.random.default_rng([number, int(RECIPE)])
            rate = _RATES[number % len(_RATES)]
            seconds = _SECONDS[(number + number_of_label) % len(_SECONDS)]
            t = np.arange(int(seconds * rate)) / rate
            waveform = make(t, rng)
            peak = float(np.abs(waveform).max()) or 1.0
            yield label, f"{label}_{number_of_label}", 0.6 * waveform / peak, rate, 1 + number % 2
            number += 1


def _tone(t: Waveform, rng: np.random.Generator) -> Waveform:
    return np.asarray(np.sin(2 * np.pi * rng.uniform(200, 2000) * t))


def _chirp(t: Waveform, rng: np.random.Generator) -> Waveform:
    low, high = rng.uniform(100, 400), rng.uniform(1500, 3500)
    return np.asarray(np.sin(2 * np.pi * (low * t + (high - low) * t**2 / (2 * t[-1]))))


def _noise(t: Waveform, rng: np.random.Generator) -> Waveform:
    return rng.standard_normal(len(t))


def _chord(t: Waveform, rng: np.random.Generator) -> Waveform:
    root = rng.uniform(110, 330)
    partials = [
        np.sin(2 * np.pi * root * ratio * harmonic * t) / harmonic for ratio in (1, 1.25, 1.5) for harmonic in (1, 2, 3)
    ]
    return np.asarray(np.exp(-1.5 * (t % 1.0)) * np.sum(partials, axis=0))


def _pulses(t: Waveform, rng: np.random.Generator) -> Waveform:
    period = rng.uniform(0.2, 0.6)
    return np.asarray(np.exp(-60 * (t % period)) * rng.standard_normal(len(t)))


def _vowel(t: Waveform, rng: np.random.Generator) -> Waveform:
    pitch = rng.uniform(90, 220) * (1 + 0.03 * np.sin(2 * np.pi * 5 * t))
    phase = 2 * np.pi * np.cumsum(pitch) * (t[1] - t[0])
    formants = rng.uniform([300, 900, 2300], [800, 2000, 3000])
    harmonics = [np.sin(k * phase) * np.sum(np.exp(-(((k * 150 - formants) / 200) ** 2))) for k in range(1, 20)]
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 3 * t)
    return np.asarray(syllables * np.sum(harmonics, axis=0) + 1e-3 * rng.standard_normal(len(t)))


def _waves(t: Waveform, rng: np.random.Generator) -> Waveform:
    swell = (0.5 - 0.5 * np.cos(2 * np.pi * t / rng.uniform(2, 4))) ** 2
    brown = np.cumsum(rng.standard_normal(len(t)))
    return swell * (brown - np.convolve(brown, np.ones(401) / 401, mode="same"))


def _siren(t: Waveform, rng: np.random.Generator) -> Waveform:
    sweep = 600 + 250 * np.sin(2 * np.pi * rng.uniform(0.3, 1.0) * t)
    return np.asarray(np.sign(np.sin(2 * np.pi * np.cumsum(sweep) * (t[1] - t[0]))))


_SOUNDS: dict[str, Callable[[Waveform, np.random.Generator], Waveform]] = {
    "tone": _tone,
    "chirp": _chirp,
    "noise": _noise,
    "chord": _chord,
    "pulses": _pulses,
    "vowel": _vowel,
    "waves": _waves,
    "siren": _siren,
}
"""The sound of each label, given times [n] in seconds and a seeded generator: float64 [n] of any scale."""
