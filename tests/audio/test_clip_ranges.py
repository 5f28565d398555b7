"""Clips that are a part of a file, by start and end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.audio.reader import read_clip
from runner.audio.sources import Array
from runner.core.errors import ClipError
from tests.audio.encoded import FLAC_TOTAL, RATE, SECONDS, decoded, encoded, read, signal, without_xing
from tests.vggish_clips import PREPARATION


@pytest.mark.parametrize("kind", ["mp3", "flac", "ogg", "opus", "stream.mp3", "zero.flac", "adpcm.wav"])
def test_parts_are_what_they_are_in_the_whole(files: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "adpcm.wav":
        soundfile.write(path, signal(), RATE, subtype="IMA_ADPCM")
    elif kind == "stream.mp3":
        path.write_bytes(without_xing(files["mp3"]))
    elif kind == "zero.flac":
        data = files["flac"]
        path.write_bytes(data[:FLAC_TOTAL] + bytes([data[FLAC_TOTAL] & 0xF0, 0, 0, 0, 0]) + data[FLAC_TOTAL + 5 :])
    else:
        path = tmp_path / f"x.{kind}"
        path.write_bytes(files[kind])
    with read_clip(str(path), preparation=PREPARATION) as clip:
        rate = clip.sample_rate
        whole = decoded(clip)
    end = len(whole) / rate
    starts = [0.0, 0.3, 1.7, 1.71, 5.0, 2.0, 0.0, end - 1.3, end - 0.05, end - 0.9, *np.linspace(0, end - 0.5, 9)]
    for start in starts:
        with read_clip(str(path), start, start + 0.7, preparation=PREPARATION) as clip:
            part = decoded(clip)
        first = round(start * rate)
        assert np.array_equal(part, whole[first : round((start + 0.7) * rate)])


def test_parts_in_order_decode_a_file_once(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ogg"
    path.write_bytes(files["ogg"])
    decoded_frames = 0
    plain_read = soundfile.SoundFile.read

    def counting(self: soundfile.SoundFile, *arguments: object, **options: object) -> Array:
        nonlocal decoded_frames
        block: Array = plain_read(self, *arguments, **options)
        decoded_frames += len(block)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    for start in np.arange(0, 11, 0.25):
        with read_clip(str(path), start, start + 0.25, preparation=PREPARATION) as clip:
            assert len(decoded(clip)) == RATE // 4
    assert decoded_frames <= SECONDS * RATE


def test_a_file_that_was_kept_is_not_taken_for_another(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.ogg"
    path.write_bytes(files["ogg"])
    with read_clip(str(path), 1.0, 2.0, preparation=PREPARATION) as clip:
        before = decoded(clip)
    path.write_bytes(encoded(tmp_path, "ogg", seed=5))
    with read_clip(str(path), 2.0, 3.0, preparation=PREPARATION) as clip:
        after = decoded(clip)
    with read_clip(str(path), preparation=PREPARATION) as clip:
        whole = decoded(clip)
    assert np.array_equal(after, whole[2 * RATE : 3 * RATE])
    assert not np.array_equal(before, whole[RATE : 2 * RATE])


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(
    ("start", "end"),
    [(start, None) for start in (1e9, 1e16, 1e300, float("nan"), float("inf"), -1.0, 12.001)]
    + [(1.0, 0.5), (0.0, float("nan")), (0.0, float("inf")), (12.001, 13.0), (12.0, 13.0)],
)
def test_a_time_outside_the_file_is_a_bad_range(
    files: dict[str, bytes], tmp_path: Path, extension: str, start: float, end: float | None
) -> None:
    path = tmp_path / f"x.{extension}"
    if extension == "wav":
        soundfile.write(path, np.zeros(SECONDS * 16_000, np.int16), 16_000)
    else:
        path.write_bytes(files[extension])
    with pytest.raises(ClipError) as refused, read_clip(str(path), start, end, preparation=PREPARATION) as clip:
        list(clip)
    assert refused.value.reason == "invalid_range"


def test_an_end_far_beyond_the_file_is_a_note(files: dict[str, bytes], tmp_path: Path) -> None:
    frames, note = read(tmp_path, "flac", files["flac"], 11.0, 1e16)
    assert len(frames) == RATE
    assert note is not None
    assert note.startswith("truncated: the file ends ")
