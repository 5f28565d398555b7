"""YAMNet's specification, its release's rule of padding, and its smoke test."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runner.audio.framing import WindowCutter, cut
from runner.yamnet.constants import VARIABLE_SHAPES
from runner.yamnet.smoke_test import padded_windows, smoke_failures, smoke_statistics, smoke_windows
from runner.yamnet.spec import YAMNET, yamnet_spec
from tests.configs import make_config


def released_patches(samples: int) -> int:
    """Patches by the release: a waveform padded to a whole number of patches, then frames, then patches of frames."""
    shortest = round((0.96 + 0.025 - 0.01) * 16_000)
    hop = round(0.48 * 16_000)
    padded = max(samples, shortest)
    padded += hop * math.ceil((padded - shortest) / hop) - (padded - shortest)
    frames = 1 + (padded - 400) // 160
    return 1 + (frames - 96) // 48


@pytest.mark.parametrize("samples", [0, 1, 15_599, 15_600, 15_601, 23_279, 23_280, 23_281, 48_000, 160_000, 1_000_003])
def test_windows_are_as_many_as_the_releases_patches(samples: int) -> None:
    waveform = np.arange(1, samples + 1, dtype=np.float32)
    windows = padded_windows(waveform)
    assert windows.shape == (released_patches(samples), YAMNET.window_samples)
    for number, window in enumerate(windows):
        real = waveform[number * YAMNET.hop_samples :][: YAMNET.window_samples]
        assert np.array_equal(window[: len(real)], real)
        assert not window[len(real) :].any()


@pytest.mark.parametrize("samples", [1, 15_599, 15_600, 15_601, 15_761, 23_280, 23_281, 160_000])
def test_a_run_cuts_clips_as_the_release_pads_them(samples: int) -> None:
    framing = make_config(["model=yamnet"]).framing
    waveform = np.arange(1, samples + 1, dtype=np.float32)
    cutter = WindowCutter(framing)
    windows = np.concatenate(list(cut(iter(np.array_split(waveform, 3)), cutter)))
    assert np.array_equal(windows, padded_windows(waveform))


def test_the_specification_is_the_releases() -> None:
    spec = yamnet_spec(("Speech",) * 521)
    assert (spec.sample_rate, spec.window_s, spec.hop_samples, spec.width) == (16_000, 0.975, 7_680, 1545)
    assert [len(output.classes) for output in spec.outputs] == [0, 521]
    assert sum(math.prod(shape) for shape in VARIABLE_SHAPES.values()) == 3_751_369


def test_a_signal_whose_class_is_not_among_the_first_ten_fails_the_smoke_test() -> None:
    classes = [f"Sound {number}" for number in range(518)] + ["Silence", "White noise", "Sine wave"]
    scores = np.repeat(np.eye(521, dtype=np.float32)[518:], 6, axis=0)
    scores[:6, :9] = 2.0
    statistics = smoke_statistics(scores, classes)
    assert statistics == {"silence_rank": 10, "white_noise_rank": 1, "sine_wave_rank": 1}
    assert smoke_failures(statistics) == []
    scores[:6, 9] = 2.0
    assert smoke_failures(smoke_statistics(scores, classes)) == ["silence_rank is 11"]


def test_the_smoke_signals_are_three_seconds_in_six_windows() -> None:
    windows = smoke_windows()
    assert windows.shape == (18, 15_600)
    assert not windows[:6].any()
    assert windows[6:12].std() == pytest.approx(np.sqrt(1 / 3), rel=0.15)
    assert windows[12:].max() == pytest.approx(1.0, abs=1e-3)
