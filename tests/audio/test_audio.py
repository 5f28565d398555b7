"""Reading clips: values, channels, parts, faults; and every hostile file."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.audio.framing import scaled
from runner.audio.reader import REASONS, read_clip
from runner.core.errors import ClipError
from tests.vggish_clips import PREPARATION

RATE = 16_000


def read(path: Path, start: float | None = None, end: float | None = None, **options: str):
    with read_clip(str(path), start, end, **options, preparation=PREPARATION) as clip:
        blocks = list(clip)
        return scaled(np.concatenate(blocks)), clip


def ramp(samples: int) -> np.ndarray:
    return (np.arange(samples) % 1000 / 1000 - 0.5).astype(np.float32)


@pytest.mark.parametrize(
    ("extension", "subtype", "tolerance"),
    [("wav", "PCM_16", 1 / 32768), ("wav", "PCM_24", 1 / 2**23), ("wav", "FLOAT", 0), ("flac", "PCM_24", 1 / 2**23)],
)
def test_lossless_formats_keep_their_precision(tmp_path: Path, extension: str, subtype: str, tolerance: float) -> None:
    path = tmp_path / f"x.{extension}"
    soundfile.write(path, ramp(50_000), RATE, subtype=subtype)
    frames, clip = read(path)
    assert frames.dtype == np.float32
    assert np.abs(frames - ramp(50_000)).max() <= tolerance
    assert (clip.sample_rate, clip.channels, clip.samples, clip.warning) == (RATE, 1, 50_000, None)
    assert clip.seconds == pytest.approx(3.125)


def test_int16_is_divided_by_32768(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.array([-32768, 0, 32767, 1], np.int16), RATE)
    assert read(tmp_path / "x.wav")[0].tolist() == [-1.0, 0.0, 32767 / 32768, 1 / 32768]


def test_channels_are_averaged_before_resampling(tmp_path: Path) -> None:
    left, right = ramp(44_100), -ramp(44_100)[::-1]
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", (left + right) / 2, 44_100, subtype="FLOAT")
    assert np.abs(read(tmp_path / "stereo.wav")[0] - read(tmp_path / "mono.wav")[0]).max() < 1e-6


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_a_part_of_a_file_is_that_part_of_the_whole(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x.{extension}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 12 * RATE), RATE)
    whole, _ = read(path)
    part, clip = read(path, 2.5, 4.0)
    assert clip.seconds == pytest.approx(1.5)
    assert np.abs(part - whole[40_000:64_000]).max() < 1e-6


def test_blocks_stay_small_however_long_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(120 * RATE, np.int16), RATE)
    with read_clip(str(tmp_path / "long.wav"), preparation=PREPARATION) as clip:
        lengths = [len(block) for block in clip]
    assert sum(lengths) == 120 * RATE
    assert max(lengths) <= 10 * RATE


@pytest.mark.parametrize(("start", "end"), [(5.0, None), (2.0, 1.0), (1.0, 1.0)])
def test_a_part_beyond_the_file_is_refused(tmp_path: Path, start: float, end: float | None) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(3 * RATE), RATE)
    with pytest.raises(ClipError) as refused:
        read(tmp_path / "x.wav", start, end)
    assert refused.value.reason == "invalid_range"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, bad: float) -> None:
    signal = ramp(50_000)
    signal[40_000] = bad
    soundfile.write(tmp_path / "x.wav", signal, RATE, subtype="FLOAT")
    with pytest.raises(ClipError) as refused:
        read(tmp_path / "x.wav")
    assert refused.value.reason == "non_finite"


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "dangling.wav").symlink_to("nowhere")
    (tmp_path / "empty.wav").touch()
    expected = {"pipe": "not_a_file", "folder": "not_a_file", "dangling": "missing", "empty": "empty", "no": "missing"}
    for name, reason in expected.items():
        with pytest.raises(ClipError) as refused:
            read_clip(str(tmp_path / f"{name}.wav"), preparation=PREPARATION)
        assert refused.value.reason == reason, name


def test_a_truncated_file_is_kept_and_noted(audio: Path) -> None:
    frames, clip = read(audio / "hostile/a_trunc_60pct.mp3")
    assert len(frames) == clip.samples > RATE
    assert clip.warning == "truncated: 92207 of 220500 frames decoded"


def test_every_hostile_file_decodes_or_is_refused_with_a_documented_reason(audio: Path) -> None:
    for path in sorted((audio / "hostile").iterdir()):
        refusal = None
        try:
            with read_clip(str(path), preparation=PREPARATION) as clip:
                samples = sum(len(block) for block in clip)
        except ClipError as error:
            refusal = error
        if refusal is None:
            assert clip.seconds > 0, path
            assert clip.samples == samples
        else:
            assert refusal.reason in REASONS, path
            assert str(audio) not in refusal.detail, path


def test_wav_and_flac_of_one_recording_are_equal_and_lossy_ones_close(audio: Path) -> None:
    stem = audio / "equivalence/perch_21100/21100_36_48"
    wav, _ = read(stem.with_suffix(".wav"))
    assert np.abs(read(stem.with_suffix(".flac"))[0] - wav).max() < 2**-22  # the last bit of 24
    for extension in (".ogg", ".opus", ".mp3"):
        lossy, _ = read(stem.with_suffix(extension))
        assert abs(len(lossy) - len(wav)) < RATE / 5


def test_m4a_through_the_extra_av_or_a_refusal_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av", reason="the extra av is not installed")
    path = tmp_path / "x.m4a"
    tone = (0.5 * np.sin(np.arange(2 * 44_100) * 0.05)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    frames, clip = read(path)
    assert clip.sample_rate == 44_100
    assert clip.seconds == pytest.approx(2.0, abs=0.1)
    assert np.sqrt((frames**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ClipError, match=r"vggish-runner\[av\]"):
        read_clip(str(path), preparation=PREPARATION)
