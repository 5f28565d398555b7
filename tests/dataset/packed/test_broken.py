"""Packed data that is broken, hostile or no file: what is there is embedded, the rest has a reason."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.config.schema import ParquetDataset
from runner.dataset.clips import Clip
from runner.dataset.packed.address import group_of
from runner.pipeline.feeder import Feeder
from tests.dataset.packed.packs import CLIPS, bytes_of, clip_bytes, listed, pack, some, web, write_parquet


def broken(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pack(path, some(0, 3))
        path.write_bytes(make(path.read_bytes()))

    return write


def _places(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset_data for member in tar]


@pytest.mark.parametrize(
    ("make", "whole", "reason"),
    [
        (lambda data: data[: len(clip_bytes(0)) + 600], 1, "truncated"),
        (lambda data: data[: len(clip_bytes(0)) // 2], 0, "truncated"),
        (lambda data: data[: -(-len(clip_bytes(0)) // 512) * 512 + 512] + b"\xff" * 9000, 1, "truncated"),
        (lambda data: data[:300], 0, "unsupported_format"),
        (lambda data: b"", 0, "unsupported_format"),
        (lambda data: b"\x1f\x8b" + b"x" * 5000, 0, "unsupported_format"),
    ],
)
def test_of_a_broken_tar_what_is_there_is_embedded_and_the_rest_has_a_reason(
    tmp_path: Path, make: Callable[[bytes], bytes], whole: int, reason: str
) -> None:
    pack(tmp_path / "good.tar", {"good.wav": clip_bytes(5)})
    broken(make)(tmp_path / "bad.tar")
    got = bytes_of(listed(web(tmp_path)))
    assert got["bad.tar"] == reason
    assert got["good.wav"] == clip_bytes(5)
    assert [name for name in some(0, 3) if got.get(name) == CLIPS[name]] == list(some(0, whole))


def _header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "hostile",
    [
        _header(b"x", b"77777777777\0", b"x"),
        _header(b"x", b"\x80" + (1 << 60).to_bytes(11, "big"), b"L"),
        _header(b"x", b"\xff" * 12, b"x"),
        _header(b"b.wav", b"\xff" * 11 + b"\x00"),
        _header(b"b.wav", b"\xff" * 10 + b"\xfc\x00"),
        _header(b"x", b"00000000000\0", b"L") * 3000,
    ],
)
def test_headers_that_lie_take_neither_memory_nor_time(tmp_path: Path, hostile: bytes) -> None:
    data = clip_bytes(0)
    size = b"%011o\0" % len(data)
    content = _header(b"a.wav", size) + data.ljust(-(-len(data) // 512) * 512, b"\0") + hostile + b"y" * 2048
    (tmp_path / "a.tar").write_bytes(content)
    got = bytes_of(listed(web(tmp_path)))
    assert got["a.wav"] == data
    assert got["a.tar"] == "truncated"


def test_links_repeated_names_and_what_is_no_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.wav", b"first"), ("/abs/../b.wav", b"b"), ("a.wav", b"second")):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
        for name, kind, target in (
            *(("hard.wav", tarfile.LNKTYPE, "a.wav"), ("d/soft.wav", tarfile.SYMTYPE, "../a.wav")),
            *(("lost.wav", tarfile.SYMTYPE, "/etc/passwd"), ("pipe.wav", tarfile.FIFOTYPE, "")),
        ):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, target
            tar.addfile(about)
    found = listed(web(tmp_path))
    assert bytes_of(found) == {
        "abs/../b.wav": b"b",
        "a.wav": b"second",
        "hard.wav": b"second",
        "d/soft.wav": b"second",
        "lost.wav": "missing",
        "pipe.wav": "not_a_file",
    }
    assert found.ignored == {"(replaced by a later member)": 1}


def test_a_pipe_named_as_a_tar_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    pack(tmp_path / "b.tar", some(0, 1))
    assert bytes_of(listed(web(tmp_path)))["a.tar"] == "not_a_file"


def test_rows_without_bytes_and_broken_parquet_have_reasons(tmp_path: Path) -> None:
    rows = [{"bytes": b"x", "path": "a.wav"}, {"bytes": None, "path": "b.wav"}, None, {"bytes": b"y", "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"audio": pa.array(rows, kind)}), tmp_path / "a.parquet")
    write_parquet(tmp_path / "cut.parquet", some(0, 3))
    data = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-100])
    pq.write_table(pa.table({"audio": [[1.0]]}), tmp_path / "numbers.parquet")
    assert bytes_of(listed(ParquetDataset(path=str(tmp_path)))) == {
        "a.wav": b"x",
        "b.wav": "empty",
        "a/000002": "empty",
        "a/000003": b"y",
        "cut.parquet": "unsupported_format",
        "numbers.parquet": "unsupported_format",
    }


def test_a_row_group_that_is_broken_costs_its_own_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", some(0, 7))
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    assert column.path_in_schema == "audio.bytes"
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 30] = b"\xff" * 30
    path.write_bytes(data)
    got = bytes_of(listed(ParquetDataset(path=str(tmp_path))))
    assert [got[name] == CLIPS[name] for name in some(0, 7)] == [True] * 3 + [False] * 3 + [True]
    assert {got[name] for name in some(3, 6)} == {"unreadable"}


def test_the_rows_of_a_row_group_go_to_one_decode_process(tmp_path: Path) -> None:
    for number in range(3):
        rows = {f"{number}/{row}": b"x" * 10 for row in range(50)}
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        audio = pa.array([{"bytes": data, "path": name} for name, data in rows.items()], kind)
        pq.write_table(pa.table({"audio": audio}), tmp_path / f"{number}.parquet", row_group_size=25)
    table = listed(ParquetDataset(path=str(tmp_path))).table
    names = ("clip", "path", "start", "end", "label", "bytes")
    columns = (table[name].to_pylist() for name in names)
    clips = [Clip(number, *row) for number, row in enumerate(zip(*columns, strict=True))]
    messages: list[list[bytes]] = []
    pool = MagicMock(has_room=True, outstanding=0)
    pool.__len__.return_value = 2
    pool.retries.return_value = []
    pool.submit.side_effect = lambda tasks, last: messages.append([task.path for task, _ in tasks])
    Feeder(iter(clips), pool, 40, lambda job, clip: None, lambda job: None).feed()
    assert [path for message in messages for path in message] == [clip.path for clip in clips]
    groups = [{group_of(path) for path in message} for message in messages]
    assert len(groups) > 3
    assert sum(map(len, groups)) == 6, "each group is in one message"
