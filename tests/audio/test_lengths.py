"""How long files are: decoded to their real end, and called truncated only where a container states more."""

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
from runner.audio.reader import ClipReader, read_clip
from runner.audio.sources import Array
from runner.audio.stream_ends import flac_end, mpeg_header, next_mpeg_frame, ogg_link
from runner.audio.wav import Pcm16Wav
from runner.core.errors import ClipError

RATE = 44_100
SECONDS = 12
FLAC_TOTAL = 21
"""Where the total of samples is in a FLAC file: the low half of this byte and the 4 after it."""


def signal(seconds: float = SECONDS, rate: int = RATE, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * rate))
    noise = np.random.default_rng(seed).normal(0, 0.05, len(time))
    return 0.3 * np.sin(time * 0.05) + noise * (np.sin(time / rate) > 0)


def encoded(folder: Path, extension: str, seconds: float = SECONDS, rate: int = RATE, seed: int = 0) -> bytes:
    """A whole file of one second or more."""
    path = folder / f"encoded-{seed}.{extension}"
    kind, subtype = ("OGG", "OPUS") if extension == "opus" else (None, None)
    soundfile.write(path, signal(seconds, rate, seed), rate, format=kind, subtype=subtype)
    return path.read_bytes()


def decoded(clip: ClipReader) -> Array:
    """A clip's frames as its file has them, not resampled; to be called instead of iterating."""
    blocks = [np.array(block) for block in clip._mono()]
    return np.concatenate(blocks)


def read(folder: Path, extension: str, data: bytes, *span: float) -> tuple[Array, str | None]:
    path = folder / f"read.{extension}"
    path.write_bytes(data)
    with read_clip(str(path), *span) as clip:
        return decoded(clip), clip.warning


def without_xing(data: bytes) -> bytes:
    """An MP3 file without the frame that states its length: a stream's."""
    return data[data.find(data[:2], 100) :]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("encoded")
    return {extension: encoded(folder, extension) for extension in ("mp3", "flac", "ogg")} | {
        "opus": encoded(folder, "opus", 6, 48_000)
    }


# MPEG


def test_an_mp3_file_of_several_blocks_is_what_one_read_gives(files: dict[str, bytes], tmp_path: Path) -> None:
    found, note = read(tmp_path, "mp3", files["mp3"])
    whole, _ = soundfile.read(tmp_path / "read.mp3", dtype="float32")
    assert len(found) == SECONDS * RATE
    assert note is None
    assert np.array_equal(found, whole)


def test_an_mp3_stream_is_whole(files: dict[str, bytes], tmp_path: Path) -> None:
    whole, _ = read(tmp_path, "mp3", files["mp3"])
    stream, note = read(tmp_path, "mp3", without_xing(files["mp3"]))
    assert note is None
    assert len(whole) <= len(stream) < len(whole) + 3 * 1152  # the encoder's delay and padding are not known
    best = min(range(2000), key=lambda k: float(np.abs(stream[k : k + 2000] - whole[:2000]).max()))
    assert np.abs(stream[best:][: len(whole) - 2000] - whole[: len(whole) - 2000]).max() < 1e-6


@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125), b"ID3\3\0\0\0\0\x20\0" + bytes(0x1000), bytes(5000)])
def test_joined_mp3_files_are_whole(files: dict[str, bytes], tmp_path: Path, between: bytes) -> None:
    one = files["mp3"]
    found, note = read(tmp_path, "mp3", one + between + one + between + one)
    assert note is None
    assert 3 * SECONDS * RATE - 1152 <= len(found) < 3 * SECONDS * RATE + 6 * 1152
    first, _ = read(tmp_path, "mp3", one)
    assert np.array_equal(found[: len(first) - 1152], first[: len(first) - 1152])


@pytest.mark.parametrize("behind", [bytes(5000), b"words " * 1000, b"TAG" + bytes(125)])
def test_what_lies_behind_an_mp3_stream_is_no_fault(files: dict[str, bytes], tmp_path: Path, behind: bytes) -> None:
    stream = without_xing(files["mp3"])
    expected, _ = read(tmp_path, "mp3", stream)
    found, note = read(tmp_path, "mp3", stream + behind)
    assert note is None
    assert abs(len(found) - len(expected)) <= 2 * 1152
    assert np.array_equal(found[: len(expected) - 2304], expected[: len(expected) - 2304])


def test_a_cut_mp3_file_is_truncated_where_its_header_states_more(files: dict[str, bytes], tmp_path: Path) -> None:
    kept = len(files["mp3"]) * 6 // 10
    found, note = read(tmp_path, "mp3", files["mp3"][:kept])
    assert note == f"truncated: {len(found)} of {SECONDS * RATE} frames decoded"
    stream, note = read(tmp_path, "mp3", without_xing(files["mp3"])[:kept])
    assert note is None
    assert abs(len(stream) - len(found)) < 4 * 1152


def test_an_id3_tag_of_a_mebibyte_is_passed_over(files: dict[str, bytes], tmp_path: Path) -> None:
    tag = b"ID3\3\0\0" + bytes([0, 0x50, 0, 0]) + bytes(0x50 << 14)
    expected, _ = read(tmp_path, "mp3", files["mp3"])
    found, note = read(tmp_path, "mp3", tag + files["mp3"])
    assert note is None
    assert np.array_equal(found, expected)


# FLAC


@pytest.mark.parametrize("total", [0, 10 * RATE, RATE, SECONDS * RATE - 1])
def test_a_flac_file_that_understates_its_total_is_whole(files: dict[str, bytes], tmp_path: Path, total: int) -> None:
    data = bytearray(files["flac"])
    data[FLAC_TOTAL] &= 0xF0
    data[FLAC_TOTAL + 1 : FLAC_TOTAL + 5] = struct.pack(">I", total)
    expected, _ = read(tmp_path, "flac", files["flac"])
    found, note = read(tmp_path, "flac", bytes(data))
    assert note is None
    assert np.array_equal(found, expected)
    part, note = read(tmp_path, "flac", bytes(data), 11.0, 11.5)
    assert note is None
    assert np.array_equal(part, expected[11 * RATE : 11 * RATE + RATE // 2])


def test_a_flac_file_that_overstates_its_total_is_truncated(files: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(files["flac"])
    data[FLAC_TOTAL + 1 : FLAC_TOTAL + 5] = struct.pack(">I", 2 * SECONDS * RATE)
    found, note = read(tmp_path, "flac", bytes(data))
    assert len(found) == SECONDS * RATE
    assert note is not None
    assert note.startswith("truncated: ")


@pytest.mark.parametrize("share", [0.99, 0.5, 0.05])
def test_a_cut_flac_file_gives_every_frame_before_the_cut(
    files: dict[str, bytes], tmp_path: Path, share: float
) -> None:
    expected, _ = read(tmp_path, "flac", files["flac"])
    found, note = read(tmp_path, "flac", files["flac"][: round(share * len(files["flac"]))])
    assert note is not None
    assert note.startswith("truncated: ")
    assert len(found) > (share - 0.03) * len(expected)
    assert np.array_equal(found, expected[: len(found)])


def test_what_is_before_a_fault_in_the_middle_is_kept(files: dict[str, bytes], tmp_path: Path) -> None:
    expected, _ = read(tmp_path, "flac", files["flac"])
    data = bytearray(files["flac"])
    data[len(data) // 2] ^= 0x55
    found, note = read(tmp_path, "flac", bytes(data))
    assert note is not None
    assert note.startswith("truncated: ")
    assert 0.45 * len(expected) < len(found) < 0.55 * len(expected)
    assert np.array_equal(found, expected[: len(found)])


# Ogg


@pytest.mark.parametrize("extension", ["ogg", "opus"])
def test_an_ogg_file_without_its_last_page_is_truncated(
    files: dict[str, bytes], tmp_path: Path, extension: str
) -> None:
    data = files[extension]
    assert read(tmp_path, extension, data)[1] is None
    for cut in (len(data) * 6 // 10, data.rindex(b"OggS")):
        found, note = read(tmp_path, extension, data[:cut])
        assert len(found) > RATE
        assert note == "truncated: the last page of its Ogg stream is missing"


@pytest.mark.parametrize("extension", ["ogg", "opus"])
def test_a_page_that_is_missing_in_the_middle_is_seen(files: dict[str, bytes], tmp_path: Path, extension: str) -> None:
    data = files[extension]
    start = data.index(b"OggS", len(data) // 2)
    found, note = read(tmp_path, extension, data[:start] + data[data.index(b"OggS", start + 1) :])
    assert len(found) > RATE
    assert note == "truncated: pages are missing in the middle of its Ogg stream"


@pytest.mark.parametrize("extension", ["ogg", "opus"])
def test_all_streams_of_a_chain_are_decoded(tmp_path: Path, extension: str) -> None:
    rate = 48_000
    one, two = (encoded(tmp_path, extension, seconds, rate, seed) for seconds, seed in ((3, 1), (2, 2)))
    parts = [read(tmp_path, extension, data)[0] for data in (one, two, one)]
    found, note = read(tmp_path, extension, one + two + one)
    assert note is None
    assert np.array_equal(found, np.concatenate(parts))
    other = encoded(tmp_path, extension, 2, 24_000, 3)
    found, note = read(tmp_path, extension, one + other)
    assert np.array_equal(found, parts[0])
    assert note is not None
    assert note.startswith(f"truncated: the stream that begins at byte {len(one)} ")


# Containers that state bytes

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
    with read_clip(str(path)) as clip:
        decoded(clip)
        assert clip.warning is None
    found = stated_bytes(str(path), container)
    os.truncate(path, path.stat().st_size * 7 // 10)
    with read_clip(str(path)) as clip:
        decoded(clip)
        assert clip.seconds > 1
        assert (clip.warning is not None and clip.warning.startswith("truncated: ")) == (
            (container, subtype) in STATING
        )
    assert (found is None) == ((container, subtype) in SILENT)
    if found is not None:
        cut = stated_bytes(str(path), container)
        assert cut is not None
        assert cut.present < cut.states == found.states == found.present


@pytest.mark.parametrize("subtype", ["PCM_16", "ALAC_16"])
def test_a_caf_file_whose_size_is_not_true_is_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "x.caf", signal(2), RATE, subtype=subtype)
    data = (tmp_path / "x.caf").read_bytes()
    expected, note = read(tmp_path, "caf", data)
    assert note is None
    place = data.index(b"data") + 4
    found, note = read(tmp_path, "caf", data[:place] + bytes(b"\xff" * 8) + data[place + 8 :])
    assert note is None
    assert np.array_equal(found, expected)
    found, note = read(tmp_path, "caf", data[: len(data) * 7 // 10])
    assert note is not None
    assert note.startswith("truncated: ")
    assert len(found) > 0.5 * len(expected)
    assert np.array_equal(found, expected[: len(found)])
    part, _ = read(tmp_path, "caf", data[: len(data) * 7 // 10], 0.5, 0.7)
    assert np.array_equal(part, expected[RATE // 2 : round(0.7 * RATE)])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_wav_file_that_its_recorder_did_not_finish_is_read(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, signal(2, rate), rate)
    data = path.read_bytes()
    expected, _ = read(tmp_path, "wav", data)
    for riff, size in ((0, 0), (36, 0), (0xFFFFFFFF, 0xFFFFFFFF), (len(data) - 8, 0)):
        found, note = read(
            tmp_path, "wav", data[:4] + struct.pack("<I", riff) + data[8:40] + struct.pack("<I", size) + data[44:]
        )
        assert note is None
        assert np.array_equal(found, expected)
    listed = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"a programme   "
    path.write_bytes(data[:40] + bytes(4) + listed)
    with read_clip(str(path)) as clip, pytest.raises(ClipError, match="empty"):
        list(clip)


def test_rf64_and_bw64_streams_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.rf64"
    soundfile.write(path, signal(2), RATE, format="RF64", subtype="PCM_16")
    data = path.read_bytes()
    expected, _ = read(tmp_path, "wav", data)
    place = data.index(b"ds64") + 16
    for changed in (b"BW64" + data[4:], data[:place] + bytes(8) + data[place + 8 :]):
        found, note = read(tmp_path, "wav", changed)
        assert note is None
        assert np.array_equal(found, expected)
    found, note = read(tmp_path, "wav", (b"BW64" + data[4:])[: len(data) // 2])
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
    file = Pcm16Wav.open(str(tmp_path / "16000.wav"))
    assert file is not None
    assert file.frames == samples // 2
    file.close()
    with read_clip(str(tmp_path / "44100.wav")) as clip:
        decoded(clip)
    assert clip.warning == f"truncated: {1 << 20} of the {samples} bytes of samples that its header states are read"


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
    found = stated_bytes(str(path), container)
    assert found is None or 0 <= found.present <= path.stat().st_size


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
    assert header is None or 0 <= header.frames_place < size
    assert (frame := next_mpeg_frame(str(path), at)) is None or at <= frame < size
    assert end is None or end.samples >= 0
    assert (following := ogg_link(str(path), 0).next_link) is None or 0 < following < size


# Parts of files


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
    with read_clip(str(path)) as clip:
        rate = clip.sample_rate
        whole = decoded(clip)
    end = len(whole) / rate
    starts = [0.0, 0.3, 1.7, 1.71, 5.0, 2.0, 0.0, end - 1.3, end - 0.05, end - 0.9, *np.linspace(0, end - 0.5, 9)]
    for start in starts:
        with read_clip(str(path), start, start + 0.7) as clip:
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
        with read_clip(str(path), start, start + 0.25) as clip:
            assert len(decoded(clip)) == RATE // 4
    assert decoded_frames <= SECONDS * RATE


def test_a_file_that_was_kept_is_not_taken_for_another(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.ogg"
    path.write_bytes(files["ogg"])
    with read_clip(str(path), 1.0, 2.0) as clip:
        before = decoded(clip)
    path.write_bytes(encoded(tmp_path, "ogg", seed=5))
    with read_clip(str(path), 2.0, 3.0) as clip:
        after = decoded(clip)
    with read_clip(str(path)) as clip:
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
    with pytest.raises(ClipError) as refused, read_clip(str(path), start, end) as clip:
        list(clip)
    assert refused.value.reason == "invalid_range"


def test_an_end_far_beyond_the_file_is_a_note(files: dict[str, bytes], tmp_path: Path) -> None:
    found, note = read(tmp_path, "flac", files["flac"], 11.0, 1e16)
    assert len(found) == RATE
    assert note is not None
    assert note.startswith("truncated: the file ends ")


# Faults of the system


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["plain.wav", "x.wav", "x.flac", "x.ogg", "x.mp3", "stream.mp3", "x.aiff", "x.tta"])
def test_a_read_error_of_the_system_is_no_truncation(files: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    extension = kind.partition(".")[2]
    if kind == "stream.mp3":
        path.write_bytes(without_xing(files["mp3"]))
    elif kind == "x.tta":
        av_file(path, "tta", "s16")
    elif extension in files:
        path.write_bytes(files[extension])
    else:
        soundfile.write(path, signal(25), 16_000 if kind == "plain.wav" else RATE)
    with read_clip(str(path)) as clip:
        blocks = iter(clip)
        if kind != "stream.mp3":  # of which a block is all
            next(blocks)
        break_reading(path)
        with pytest.raises(ClipError) as refused:
            list(blocks)
    assert refused.value.reason == "unreadable"


def break_reading(path: Path) -> None:
    """Have the system refuse to read on where this process has a file open: as it does a folder."""
    folder = os.open("/", os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{name}"
        if os.path.lexists(link) and os.readlink(link) == str(path):
            os.dup2(folder, int(name))
    os.close(folder)


# PyAV


def av_file(path: Path, codec: str, form: str, options: dict[str, str] | None = None) -> bytes:
    """Eight seconds by one of FFmpeg's encoders."""
    av = pytest.importorskip("av", reason="the extra av is not installed")
    samples = signal(8).astype(np.float32)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        for start in range(0, len(samples), 1024):
            part = samples[None, start : start + 1024]
            part = part if form == "fltp" else (part * 32_767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=form, layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("extension", "codec", "form"),
    [("m4a", "aac", "fltp"), ("aac", "aac", "fltp"), ("tta", "tta", "s16"), ("mka", "aac", "fltp")],
)
def test_what_pyav_decodes_before_a_fault_is_kept(tmp_path: Path, extension: str, codec: str, form: str) -> None:
    data = av_file(tmp_path / f"x.{extension}", codec, form, {"movflags": "faststart"} if extension == "m4a" else None)
    whole, note = read(tmp_path, extension, data)
    assert note is None
    assert len(whole) >= 8 * RATE
    for broken in (data[: len(data) * 6 // 10], data[: len(data) // 2] + b"\x55" * 3000 + data[len(data) // 2 :]):
        found, note = read(tmp_path, extension, broken)
        assert note is not None
        assert note.startswith("truncated: ")
        assert len(found) > 0.35 * len(whole)
        assert np.array_equal(found[: 2 * RATE], whole[: 2 * RATE])


def test_an_m4a_file_whose_table_of_contents_is_cut_off_is_refused(tmp_path: Path) -> None:
    data = av_file(tmp_path / "x.m4a", "aac", "fltp")
    with pytest.raises(ClipError) as refused:
        read(tmp_path, "m4a", data[: len(data) // 2])
    assert refused.value.reason == "unsupported_format"
