"""Containers that state bytes: decoded to their real end, and truncated only where they state more."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.audio.lengths import StatedBytes, fixed_header, stated_bytes
from runner.audio.reader import read_clip
from runner.audio.stream_ends import flac_end, mpeg_header, next_mpeg_frame, ogg_link
from runner.audio.wav import Pcm16Wav
from runner.core.errors import ClipError
from tests.audio.encoded import RATE, decoded, read, signal
from tests.vggish_clips import PREPARATION

SUBTYPES = {
    "WAV": ["PCM_16", "PCM_24", "IMA_ADPCM", "MS_ADPCM", "GSM610", "ULAW"],
    "WAVEX": ["FLOAT"],
    "W64": ["PCM_16", "MS_ADPCM"],
    "AIFF": ["PCM_16", "ALAW"],
    "AU": ["PCM_16", "G721_32"],
    "NIST": ["PCM_16", "ULAW"],
    **{container: ["PCM_16"] for container in ("RF64", "VOC", "SVX", "AVR", "MPC2K")},
}
STATING = [(container, subtype) for container, subtypes in SUBTYPES.items() for subtype in subtypes]
SILENT = [("PAF", "PCM_16"), ("PVF", "PCM_16"), ("IRCAM", "PCM_16")]


@pytest.mark.parametrize(("container", "subtype"), STATING + SILENT)
def test_a_cut_file_is_truncated_where_its_container_states_more(tmp_path: Path, container: str, subtype: str) -> None:
    rate = 44_100 if container == "MPC2K" else 8_000
    path = tmp_path / "x.bin"
    soundfile.write(path, signal(2, rate), rate, format=container, subtype=subtype)
    with read_clip(str(path), preparation=PREPARATION) as clip:
        decoded(clip)
        assert clip.warning is None
    stated = stated_bytes(str(path), container)
    os.truncate(path, path.stat().st_size * 7 // 10)
    with read_clip(str(path), preparation=PREPARATION) as clip:
        decoded(clip)
        assert clip.seconds > 1
        assert (clip.warning is not None and clip.warning.startswith("truncated: ")) == (
            (container, subtype) in STATING
        )
    assert (stated is None) == ((container, subtype) in SILENT)
    if stated is not None:
        cut = stated_bytes(str(path), container)
        assert cut is not None
        assert cut.present < cut.stated == stated.stated == stated.present


@pytest.mark.parametrize("subtype", ["PCM_16", "ALAC_16"])
def test_a_caf_file_whose_size_is_not_true_is_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "x.caf", signal(2), RATE, subtype=subtype)
    data = (tmp_path / "x.caf").read_bytes()
    expected, note = read(tmp_path, "caf", data)
    assert note is None
    place = data.index(b"data") + 4
    frames, note = read(tmp_path, "caf", data[:place] + bytes(b"\xff" * 8) + data[place + 8 :])
    assert note is None
    assert np.array_equal(frames, expected)
    frames, note = read(tmp_path, "caf", data[: len(data) * 7 // 10])
    assert note is not None
    assert note.startswith("truncated: ")
    assert len(frames) > 0.5 * len(expected)
    assert np.array_equal(frames, expected[: len(frames)])
    part, _ = read(tmp_path, "caf", data[: len(data) * 7 // 10], 0.5, 0.7)
    assert np.array_equal(part, expected[RATE // 2 : round(0.7 * RATE)])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_wav_file_that_its_recorder_did_not_finish_is_read(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, signal(2, rate), rate)
    data = path.read_bytes()
    expected, _ = read(tmp_path, "wav", data)
    for riff, size in ((0, 0), (36, 0), (0xFFFFFFFF, 0xFFFFFFFF), (len(data) - 8, 0)):
        frames, note = read(
            tmp_path, "wav", data[:4] + struct.pack("<I", riff) + data[8:40] + struct.pack("<I", size) + data[44:]
        )
        assert note is None
        assert np.array_equal(frames, expected)
    listed = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"a programme   "
    path.write_bytes(data[:40] + bytes(4) + listed)
    with read_clip(str(path), preparation=PREPARATION) as clip, pytest.raises(ClipError, match="empty"):
        list(clip)


def test_rf64_and_bw64_streams_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.rf64"
    soundfile.write(path, signal(2), RATE, format="RF64", subtype="PCM_16")
    data = path.read_bytes()
    expected, _ = read(tmp_path, "wav", data)
    place = data.index(b"ds64") + 16
    for changed in (b"BW64" + data[4:], data[:place] + bytes(8) + data[place + 8 :]):
        frames, note = read(tmp_path, "wav", changed)
        assert note is None
        assert np.array_equal(frames, expected)
    frames, note = read(tmp_path, "wav", (b"BW64" + data[4:])[: len(data) // 2])
    assert note is not None


@pytest.mark.parametrize("odd", [0, 1])
def test_chunks_of_any_size_may_lie_before_the_samples(tmp_path: Path, odd: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, signal(1), RATE)
    data = path.read_bytes()
    for padding in {0, odd}:
        chunks = b"".join(
            name + struct.pack("<I", size + odd) + bytes(size + odd + padding)
            for name, size in ((b"bext", 602), (b"iXML", 9000), (b"LIST", 70_000))[: 1 if odd and not padding else 3]
        )
        path.write_bytes((data[:36] + chunks + data[36:])[:-1000])
        assert stated_bytes(str(path), "WAV") == StatedBytes(2 * RATE, 2 * RATE - 1000)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFE])
def test_a_size_that_is_not_known_states_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, signal(1), RATE)
    data = path.read_bytes()
    path.write_bytes(data[:40] + struct.pack("<I", size) + data[44:])
    assert stated_bytes(str(path), "WAV") is None


def test_a_wav_file_that_outgrew_its_32_bits(tmp_path: Path) -> None:
    samples = (1 << 32) + (1 << 20)
    for rate in (16_000, 44_100):
        path = tmp_path / f"{rate}.wav"
        head = b"RIFF" + struct.pack("<I", samples + 36 & 0xFFFFFFFF) + b"WAVEfmt "
        head += struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
        path.write_bytes(head + b"data" + struct.pack("<I", samples & 0xFFFFFFFF))
        os.truncate(path, 44 + samples)
        assert stated_bytes(str(path), "WAV") == StatedBytes(samples, 1 << 20)
    file = Pcm16Wav.open(str(tmp_path / "16000.wav"), 16_000)
    assert file is not None
    assert file.frames == samples // 2
    file.close()
    with read_clip(str(tmp_path / "44100.wav"), preparation=PREPARATION) as clip:
        decoded(clip)
    assert clip.warning == f"truncated: {1 << 20} of the {samples} bytes of samples that its header states are read"


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_header_breaks_the_parsers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "x"
    container = data.draw(st.sampled_from([*dict(STATING), "CAF", "HTK", "WVE"]))
    start = data.draw(
        st.sampled_from([b"RIFF", b"RF64", b"FORM", b".snd", b"NIST_1A\n   1024\n", b"2BIT", b"caff", b""])
    )
    body = data.draw(st.binary(max_size=200)) + data.draw(st.sampled_from([b"", b"data", b"SSND", b"ds64"]))
    path.write_bytes(start + body + data.draw(st.binary(max_size=60)))
    fixed_header(str(path))
    stated = stated_bytes(str(path), container)
    assert stated is None or 0 <= stated.present <= path.stat().st_size


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1), new=st.binary(max_size=12), kind=st.sampled_from(["mp3", "flac", "ogg", "opus"]))
def test_no_stream_breaks_the_walks(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, place: float, new: bytes, kind: str
) -> None:
    path = tmp_path_factory.mktemp("hostile") / "x"
    data = files[kind][:50_000] + files[kind][-50_000:]
    at = int(place**3 * len(data))
    path.write_bytes(data[:at] + new + data[at + len(new) // 2 :])
    size = path.stat().st_size
    header, end = mpeg_header(str(path)), flac_end(str(path))
    assert header is None or 0 <= header.frames_offset < size
    assert (frame := next_mpeg_frame(str(path), at)) is None or at <= frame < size
    assert end is None or end.samples >= 0
    assert (following := ogg_link(str(path), 0).next_link) is None or 0 < following < size
