"""MPEG, FLAC and Ogg streams: decoded to their real end, and truncated only where they state more."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.audio.encoded import FLAC_TOTAL, RATE, SECONDS, encoded, read, without_xing


def test_an_mp3_file_of_several_blocks_is_what_one_read_gives(files: dict[str, bytes], tmp_path: Path) -> None:
    frames, note = read(tmp_path, "mp3", files["mp3"])
    whole, _ = soundfile.read(tmp_path / "read.mp3", dtype="float32")
    assert len(frames) == SECONDS * RATE
    assert note is None
    assert np.array_equal(frames, whole)


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
    frames, note = read(tmp_path, "mp3", one + between + one + between + one)
    assert note is None
    assert 3 * SECONDS * RATE - 1152 <= len(frames) < 3 * SECONDS * RATE + 6 * 1152
    first, _ = read(tmp_path, "mp3", one)
    assert np.array_equal(frames[: len(first) - 1152], first[: len(first) - 1152])


@pytest.mark.parametrize("behind", [bytes(5000), b"words " * 1000, b"TAG" + bytes(125)])
def test_what_lies_behind_an_mp3_stream_is_no_fault(files: dict[str, bytes], tmp_path: Path, behind: bytes) -> None:
    stream = without_xing(files["mp3"])
    expected, _ = read(tmp_path, "mp3", stream)
    frames, note = read(tmp_path, "mp3", stream + behind)
    assert note is None
    assert abs(len(frames) - len(expected)) <= 2 * 1152
    assert np.array_equal(frames[: len(expected) - 2304], expected[: len(expected) - 2304])


def test_a_cut_mp3_file_is_truncated_where_its_header_states_more(files: dict[str, bytes], tmp_path: Path) -> None:
    kept = len(files["mp3"]) * 6 // 10
    frames, note = read(tmp_path, "mp3", files["mp3"][:kept])
    assert note == f"truncated: {len(frames)} of {SECONDS * RATE} frames decoded"
    stream, note = read(tmp_path, "mp3", without_xing(files["mp3"])[:kept])
    assert note is None
    assert abs(len(stream) - len(frames)) < 4 * 1152


def test_an_id3_tag_of_a_mebibyte_is_passed_over(files: dict[str, bytes], tmp_path: Path) -> None:
    tag = b"ID3\3\0\0" + bytes([0, 0x50, 0, 0]) + bytes(0x50 << 14)
    expected, _ = read(tmp_path, "mp3", files["mp3"])
    frames, note = read(tmp_path, "mp3", tag + files["mp3"])
    assert note is None
    assert np.array_equal(frames, expected)


@pytest.mark.parametrize("total", [0, 10 * RATE, RATE, SECONDS * RATE - 1])
def test_a_flac_file_that_understates_its_total_is_whole(files: dict[str, bytes], tmp_path: Path, total: int) -> None:
    data = bytearray(files["flac"])
    data[FLAC_TOTAL] &= 0xF0
    data[FLAC_TOTAL + 1 : FLAC_TOTAL + 5] = struct.pack(">I", total)
    expected, _ = read(tmp_path, "flac", files["flac"])
    frames, note = read(tmp_path, "flac", bytes(data))
    assert note is None
    assert np.array_equal(frames, expected)
    part, note = read(tmp_path, "flac", bytes(data), 11.0, 11.5)
    assert note is None
    assert np.array_equal(part, expected[11 * RATE : 11 * RATE + RATE // 2])


def test_a_flac_file_that_overstates_its_total_is_truncated(files: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(files["flac"])
    data[FLAC_TOTAL + 1 : FLAC_TOTAL + 5] = struct.pack(">I", 2 * SECONDS * RATE)
    frames, note = read(tmp_path, "flac", bytes(data))
    assert len(frames) == SECONDS * RATE
    assert note is not None
    assert note.startswith("truncated: ")


@pytest.mark.parametrize("share", [0.99, 0.5, 0.05])
def test_a_cut_flac_file_gives_every_frame_before_the_cut(
    files: dict[str, bytes], tmp_path: Path, share: float
) -> None:
    expected, _ = read(tmp_path, "flac", files["flac"])
    frames, note = read(tmp_path, "flac", files["flac"][: round(share * len(files["flac"]))])
    assert note is not None
    assert note.startswith("truncated: ")
    assert len(frames) > (share - 0.03) * len(expected)
    assert np.array_equal(frames, expected[: len(frames)])


def test_what_is_before_a_fault_in_the_middle_is_kept(files: dict[str, bytes], tmp_path: Path) -> None:
    expected, _ = read(tmp_path, "flac", files["flac"])
    data = bytearray(files["flac"])
    data[len(data) // 2] ^= 0x55
    frames, note = read(tmp_path, "flac", bytes(data))
    assert note is not None
    assert note.startswith("truncated: ")
    assert 0.45 * len(expected) < len(frames) < 0.55 * len(expected)
    assert np.array_equal(frames, expected[: len(frames)])


@pytest.mark.parametrize("extension", ["ogg", "opus"])
def test_an_ogg_file_without_its_last_page_is_truncated(
    files: dict[str, bytes], tmp_path: Path, extension: str
) -> None:
    data = files[extension]
    assert read(tmp_path, extension, data)[1] is None
    for cut in (len(data) * 6 // 10, data.rindex(b"OggS")):
        frames, note = read(tmp_path, extension, data[:cut])
        assert len(frames) > RATE
        assert note == "truncated: the last page of its Ogg stream is missing"


@pytest.mark.parametrize("extension", ["ogg", "opus"])
def test_a_page_that_is_missing_in_the_middle_is_seen(files: dict[str, bytes], tmp_path: Path, extension: str) -> None:
    data = files[extension]
    start = data.index(b"OggS", len(data) // 2)
    frames, note = read(tmp_path, extension, data[:start] + data[data.index(b"OggS", start + 1) :])
    assert len(frames) > RATE
    assert note == "truncated: pages are missing in the middle of its Ogg stream"


@pytest.mark.parametrize("extension", ["ogg", "opus"])
def test_all_streams_of_a_chain_are_decoded(tmp_path: Path, extension: str) -> None:
    rate = 48_000
    one, two = (encoded(tmp_path, extension, seconds, rate, seed) for seconds, seed in ((3, 1), (2, 2)))
    parts = [read(tmp_path, extension, data)[0] for data in (one, two, one)]
    frames, note = read(tmp_path, extension, one + two + one)
    assert note is None
    assert np.array_equal(frames, np.concatenate(parts))
    other = encoded(tmp_path, extension, 2, 24_000, 3)
    frames, note = read(tmp_path, extension, one + other)
    assert np.array_equal(frames, parts[0])
    assert note is not None
    assert note.startswith(f"truncated: the stream that begins at byte {len(one)} ")
