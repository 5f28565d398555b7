"""Protocols of FAD tools: as many examples, of the same samples, as loops written from the tools' own definitions."""

from __future__ import annotations

import numpy as np
import pytest

from runner.audio.framing import Framing, WindowCutter, cut
from runner.vggish.spec import VGGISH
from tests.configs import make_config

LENGTHS = [
    1,
    8_000,
    15_599,
    *range(15_600, 16_003),
    *range(16_003, 200_000, 997),
    31_999,
    32_000,
    160_000,
    167_600,
    200_000,
]


def of_google(samples: int) -> list[int]:
    """audioset_model.py: windows of 16,000 samples every 8,000 that are whole; the first 96 of their 98 frames."""
    starts = []
    for start in range(0, samples - 16_000 + 1, 8_000):
        frames = 1 + (16_000 - 400) // 160
        assert frames == 98
        starts.append(start)
    return starts


def of_torchvggish(samples: int) -> list[int]:
    """vggish_input.py: frames of 400 samples every 160, then examples of 96 frames every 96."""
    frames = list(range(0, samples - 400 + 1, 160))
    return [frames[first] for first in range(0, len(frames) - 96 + 1, 96)]


def of_audioldm(samples: int) -> list[int]:
    """load_mel.py's pad_short_audio, then torchvggish."""
    return of_torchvggish(max(samples, 32_000))


def of_vggish(samples: int) -> list[int]:
    """This project's own: torchvggish, but a clip too short for an example has one, padded, as fadtk pads it."""
    return of_torchvggish(max(samples, 15_600))


@pytest.mark.parametrize("definition", [of_google, of_torchvggish, of_audioldm, of_vggish])
def test_examples_are_those_of_the_definition(definition) -> None:  # type: ignore[no-untyped-def]
    framing = make_config([f"frontend={definition.__name__.removeprefix('of_')}"]).framing
    clip = np.arange(1, 200_001, dtype=np.float32)
    for samples in LENGTHS:
        cutter = WindowCutter(framing)
        blocks = np.split(clip[:samples], range(5_001, samples, 50_021))
        windows = np.concatenate(list(cut(iter(blocks), cutter)))
        starts = definition(samples)
        assert len(windows) == cutter.examples == len(starts), samples
        for window, start in zip(windows, starts, strict=True):
            real = window[: max(0, samples - start)]
            assert np.array_equal(real, clip[start : start + len(real)]), samples
            assert not window[len(real) :].any()
        assert cutter.padded == any(start + 15_600 > samples for start in starts), samples


def test_a_clip_is_padded_in_its_own_type() -> None:
    cutter = WindowCutter(Framing.of(VGGISH, min_duration_s=2.0))
    windows = np.concatenate(list(cut(iter([np.ones(100, np.int16)]), cutter)))
    assert (windows.dtype, windows.shape, windows.sum()) == (np.int16, (2, 15_600), 100)
    assert cutter.padded
