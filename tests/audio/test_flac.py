"""FLAC in one go by dr_flac: libsndfile's samples, or libsndfile itself."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.audio import flac
from runner.audio.flac import MOST_SAMPLES, decode_flac
from runner.audio.reader import read_clip
from runner.core.errors import ClipError
from tests.vggish_clips import PREPARATION

pytest.importorskip("miniaudio", reason="the extra flac is not installed")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(-20_000, 20_000, (100_000, 2)).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", noise, 44_100, subtype="PCM_16")
    return tmp_path / "a.flac"


@pytest.fixture
def without_miniaudio(monkeypatch: pytest.MonkeyPatch):
    def remove() -> None:
        monkeypatch.setattr(flac, "_miniaudio", lambda: None)

    return remove


def read(path: Path, start: float | None = None, end: float | None = None) -> tuple[object, ...]:
    """All that a reader tells of a clip: its samples, and what it warns of or refuses."""
    try:
        with read_clip(os.fsencode(path), start, end, preparation=PREPARATION) as clip:
            blocks = list(clip.blocks())
        return np.concatenate(blocks).tobytes(), blocks[0].dtype, clip.warning
    except ClipError as error:
        return error.reason, error.detail


def test_its_samples_are_libsndfiles(file: Path) -> None:
    decoded = decode_flac(os.fsencode(file), 100_000, 2)
    assert decoded is not None
    assert np.array_equal(decoded, soundfile.read(file, dtype="int16")[0])


def test_a_long_file_and_one_of_another_length_are_left_to_libsndfile(file: Path) -> None:
    assert decode_flac(os.fsencode(file), 99_999, 2) is None
    assert decode_flac(os.fsencode(file), MOST_SAMPLES, 2) is None


def test_a_small_recording_in_a_large_file_is_left_to_libsndfile(file: Path) -> None:
    os.truncate(file, 4 * MOST_SAMPLES + 1)  # zeros follow
    assert decode_flac(os.fsencode(file), 100_000, 2) is None


def test_clips_of_a_file_that_was_decoded_whole_are_its_parts(file: Path, without_miniaudio) -> None:
    ranges = [(0.0, 0.5), (None, None), (1.25, 2.0), (0.1, 0.2), (2.0, 9.0), (3.0, 4.0)]
    whole = [read(file, *span) for span in ranges]
    without_miniaudio()
    os.utime(file, (1, 1))  # not the cached one
    assert [read(file, *span) for span in ranges] == whole


def test_a_damaged_file_is_read_as_without_it(file: Path, without_miniaudio) -> None:
    draw, sound = random.Random(0), file.read_bytes()
    damaged = []
    for number in range(20):
        path = file.with_name(f"{number}.flac")
        at = draw.randrange(len(sound))
        changed = {0: sound[:at], 1: sound[:at] + sound[at + 50 :], 2: sound[:at] + b"\x55" + sound[at + 1 :]}
        path.write_bytes(changed[number % 3])
        damaged.append(path)
    read_by_both = [read(path) for path in damaged]
    without_miniaudio()
    for path in damaged:
        os.utime(path, (1, 1))
    assert [read(path) for path in damaged] == read_by_both
    assert len(set(map(str, read_by_both))) > 10
