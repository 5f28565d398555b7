"""Packed data sets: the rows of WebDataset tars and of Parquet columns are those of the unpacked files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.config.composition import compose_config
from runner.config.schema import DatasetConfig, FolderDataset, ParquetDataset, WebDataset
from runner.core.errors import ClipError, ConfigError, DatasetError
from runner.dataset.clips import Clip
from runner.dataset.manifest import build_manifest
from runner.dataset.packed.address import TarMember, group_of, parse_address
from runner.dataset.packed.clips import PackedClips
from runner.dataset.table import Manifest
from runner.dataset.window_types import is_int16
from runner.pipeline.feeder import Feeder
from runner.storage.ranges import MAX_REQUEST_BYTES
from tests.conftest import environment
from tests.object_store import StoreServer, object_store
from tests.whole_run import session

EXTENSIONS = ["wav", "flac", "mp3"]
QUICK = (
    *("weights=random", "output.formats=[parquet,npz]", "output.clips_per_shard=4", "profile=off", "tracking=none"),
    *("device=cpu", "memory=conservative", "memory.decode_workers=2"),
)


def clip_bytes(number: int, form: str = "WAV", rate: int = 16_000, channels: int = 1) -> bytes:
    """A sound of one to three seconds."""
    sound = np.random.default_rng(number).uniform(-0.3, 0.3, ((1 + number % 3) * rate, channels))
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=form)
    return file.getvalue()


CLIPS = {
    **{f"cat/{number:03d}.wav": clip_bytes(number) for number in range(5)},
    "cat/short.wav": clip_bytes(1)[:9000],
    "dog/a b#c?.flac": clip_bytes(8, "FLAC", 44_100, 2),
    "dog/x.mp3": clip_bytes(9, "MP3", 44_100),
    "dog/ünï/ß.wav": clip_bytes(10),
    "empty.wav": b"",
    "no.wav": b"RIFF nothing",
}
"""In the order of their names' bytes, as a folder lists them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decode_message")
    for name, data in CLIPS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def pack(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def some(first: int, end: int) -> dict[str, bytes]:
    return dict(list(CLIPS.items())[first:end])


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tars")
    pack(root / "part-000.tar", some(0, 4) | {"cat/000.json": b'{"label": 3}', "./README": b"x"})
    pack(root / "part-001.tar", {f"./{name}": data for name, data in some(4, 9).items()}, tarfile.GNU_FORMAT)
    pack(root / "sub" / "part-002.tar", some(9, 99))
    return root


def write_parquet(path: Path, clips: dict[str, bytes], **columns: Any) -> Path:
    rows = [{"bytes": data, "path": name} for name, data in clips.items()]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [os.path.basename(os.path.dirname(name)) or None for name in clips]
    table = pa.table({"n": list(range(len(rows))), "audio": pa.array(rows, kind), "label": labels} | columns)
    pq.write_table(table, path, row_group_size=3)
    return path


@pytest.fixture(scope="module")
def parquets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parquets")
    write_parquet(root / "train-0.parquet", some(0, 7))
    write_parquet(root / "train-1.parquet", some(7, 99))
    return root


def web(path: object, **settings: Any) -> WebDataset:
    return WebDataset(path=str(path), **({"extensions": EXTENSIONS} | settings))


def listed(dataset: DatasetConfig, outputs: Path | None = None) -> Manifest:
    return build_manifest(dataset, outputs or Path("/nonexistent"))


def rows_of(found: Manifest) -> dict[str, tuple[int, str | None]]:
    columns = (found.table[name].to_pylist() for name in ("clip", "bytes", "label"))
    return {clip: (size, label) for clip, size, label in zip(*columns, strict=True)}


def bytes_of(found: Manifest, **options: Any) -> dict[str, bytes | str]:
    """The bytes of each clip as a decode process gets them, or the reason why not."""
    clips = PackedClips(options.get("ahead", 2), options.get("timeout_s", 5))
    paths = found.table["path"].to_pylist()
    got: dict[str, bytes | str] = {}
    for job, (name, path) in enumerate(zip(found.table["clip"].to_pylist(), paths, strict=True)):
        try:
            with clips.open_clip(job, path, enumerate(paths[job + 1 :], job + 1), lambda: None) as file:
                got[name] = Path(file.path).read_bytes()
        except ClipError as error:
            got[name] = error.reason
    clips.close()
    return got


# Rows are those of the files


def embed(tmp_path: Path, name: str, *settings: str) -> tuple[dict[str, Any], Path]:
    run = tmp_path / name / "run"
    config = compose_config(
        [*QUICK, f"paths.outputs={tmp_path}", f"paths.models={tmp_path}", f"output.dir={run}", *settings]
    )
    result = session(config, run)
    assert isinstance(result, dict), result
    assert result["status"] == "finished", result.get("failure")
    return result, run


@pytest.fixture(scope="module")
def decode_message(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return embed(tmp_path_factory.mktemp("undisturbed"), "folder", f"dataset.root={folder}")


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_run_gives_the_rows_of_the_unpacked_files(
    decode_message: tuple[dict[str, Any], Path], tars: Path, parquets: Path, tmp_path: Path, kind: str
) -> None:
    expected, beside = decode_message
    path = tars if kind == "webdataset" else parquets
    result, run = embed(tmp_path, kind, f"dataset={kind}", f"dataset.path={path}")
    assert result["skipped"] == expected["skipped"]
    assert result["warnings_by_reason"] == expected["warnings_by_reason"]
    clips, files = pq.read_table(run / "clips.parquet"), pq.read_table(beside / "clips.parquet")
    columns = [name for name in clips.column_names if name != "detail"]
    assert clips.select(columns).equals(files.select(columns))
    assert pq.read_table(run / "embeddings").equals(pq.read_table(beside / "embeddings"))
    npz = {path.relative_to(beside): path.read_bytes() for path in beside.glob("npz/**/*.npz")}
    assert {path.relative_to(run): path.read_bytes() for path in run.glob("npz/**/*.npz")} == npz
    if kind == "webdataset":
        assert result["dataset"]["digest"] == expected["dataset"]["digest"]


def test_members_are_listed_as_the_files_of_a_folder_are(tars: Path, folder: Path) -> None:
    found, files = listed(web(tars)), listed(FolderDataset(root=str(folder), extensions=EXTENSIONS))
    assert rows_of(found) == rows_of(files)
    assert found.digest == files.digest
    assert found.ignored == {".json": 1, "(no extension)": 1}
    assert bytes_of(found) == CLIPS


def test_a_parquet_files_rows_are_listed_without_reading_the_audio(parquets: Path, folder: Path) -> None:
    found, files = (
        listed(ParquetDataset(path=str(parquets))),
        listed(FolderDataset(root=str(folder), extensions=EXTENSIONS)),
    )
    labels = {clip: label for clip, (_, label) in rows_of(found).items()}
    assert labels == {clip: label for clip, (_, label) in rows_of(files).items()}
    assert bytes_of(found) == {**CLIPS, "empty.wav": "empty"}


@pytest.mark.parametrize("order", [1, -1])
def test_rows_that_are_asked_for_out_of_order_are_right_too(parquets: Path, order: int) -> None:
    found = listed(ParquetDataset(path=str(parquets)))
    paths = dict(zip(found.table["clip"].to_pylist(), found.table["path"].to_pylist(), strict=True))
    clips = PackedClips(2, 5)
    for name in [name for name in paths if CLIPS[name]][::order] * 2:
        with clips.open_clip(0, paths[name], (), lambda: None) as file:
            assert Path(file.path).read_bytes() == CLIPS[name]
            assert file.suffix == Path(name).suffix
    clips.close()


def test_local_tars_need_no_pyarrow_to_be_decoded() -> None:
    code = (
        "import sys, runner.pipeline.decode_worker; sys.exit(sum(name in sys.modules for name in ('pyarrow', "
        "'fsspec', 'tarfile')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60).returncode == 0


def test_windows_are_guessed_by_the_clips_own_heads(tars: Path, parquets: Path) -> None:
    for found in (listed(web(tars)), listed(ParquetDataset(path=str(parquets)))):
        guessed = dict(
            zip(found.table["clip"].to_pylist(), map(is_int16, found.table["path"].to_pylist()), strict=True)
        )
        assert guessed["cat/000.wav"]
        assert not guessed["dog/x.mp3"]


# Which containers


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("part-000.tar", ["part-000.tar"]),
        ("part-{000..001}.tar", ["part-000.tar", "part-001.tar"]),
        ("{sub/part-002,part-000}.tar", ["sub/part-002.tar", "part-000.tar"]),
        ("*.tar", ["part-000.tar", "part-001.tar", "sub/part-002.tar"]),
        ("part-*[1-9].tar", ["part-001.tar"]),
        ("", ["part-000.tar", "part-001.tar", "sub/part-002.tar"]),
    ],
)
def test_tars_are_named_by_file_folder_or_pattern(tars: Path, given: str, names: list[str]) -> None:
    found = listed(web(f"{tars}/{given}"))
    places = dict.fromkeys(os.fsdecode(path.partition(b"\0")[0]) for path in found.table["path"].to_pylist())
    assert list(places) == [f"{tars}/{name}" for name in names]


def test_one_of_many_tars_that_is_not_there_is_a_clip_that_is_missing(tars: Path) -> None:
    found = listed(web(f"{tars}/part-{{000..002}}.tar"))
    assert bytes_of(found) == {**some(0, 9), "part-002.tar": "missing"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "needs dataset.path"),
        (["dataset.path=/no/such.tar"], "does not exist: give a tar"),
        (["dataset.path='pipe:cat x'"], "WebDataset's way"),
        (["dataset.path=/tmp", "dataset.extensions=[]"], "extensions is empty"),
        (["dataset.path='s3://me:secret@data/x'"], "leave it out"),
    ],
)
def test_what_can_not_be_named_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(["dataset=webdataset", *settings])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_a_compressed_tar_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(DatasetError, match=r"compressed .* decompress it"):
            listed(web(given))


@pytest.mark.parametrize("path", ["s3://{a,b}/x.tar", "/tmp/x-{3..1}.tar", "/tmp/{0..9999999}.tar"])
def test_patterns_that_stand_for_nothing_that_can_be_read(path: str) -> None:
    with pytest.raises(DatasetError, match=r"several buckets|not a range"):
        listed(web(path))


def test_clips_of_one_name_are_an_error_unless_prefixed(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"0.wav": clip_bytes(1)})
    pack(tmp_path / "b/c.tar", {"0.wav": clip_bytes(2)})
    with pytest.raises(DatasetError, match=r"0\.wav is in .*b/c\.tar and in .*a\.tar: set dataset\.prefix=true"):
        listed(web(tmp_path))
    assert bytes_of(listed(web(tmp_path, prefix=True))) == {"a/0.wav": clip_bytes(1), "b/c/0.wav": clip_bytes(2)}


# Labels


@pytest.mark.parametrize(
    ("label_from", "labels"),
    [
        ("none", [None, None, None]),
        ("parent", ["d", "d", None]),
        ("cls", ["7", "7", None]),
        ("json:name", ["dog", "dog", '["a"]']),
        ("json:nothing", [None, None, None]),
    ],
)
def test_a_samples_label_is_that_of_all_its_audio(tmp_path: Path, label_from: str, labels: list[str | None]) -> None:
    members = {
        "d/1.left.wav": b"",
        "d/1.cls": b"7\n",
        "d/1.right.WAV": b"",
        "d/1.json": b'{"name": "dog"}',
        "2.json": b'{"name": ["a"]}',
        "2.wav": b"",
        "2.cls": b"\xff",
        "3.json": b"not json",
    }
    found = listed(web(pack(tmp_path / "a.tar", members), label_from=label_from))
    assert found.table["clip"].to_pylist() == ["d/1.left.wav", "d/1.right.WAV", "2.wav"]
    assert found.table["label"].to_pylist() == labels


def test_hugging_faces_class_labels_have_their_names(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"audio": [b"x"] * 4, "label": pa.array([1, 0, -1, None], pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    found = listed(ParquetDataset(path=str(tmp_path)))
    assert found.table["label"].to_pylist() == ["dog", "cat", None, None]
    assert found.table["clip"].to_pylist() == [f"a/{row:06d}" for row in range(4)]


def test_names_and_audio_may_be_other_columns(tmp_path: Path) -> None:
    data = {"id": [7, 8], "small": [b"x", b"y"], "sound": pa.array([b"1", b"2"], pa.large_binary())}
    pq.write_table(pa.table(data), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"several columns may be audio \(small, sound\): give one"):
        listed(ParquetDataset(path=str(tmp_path)))
    found = listed(ParquetDataset(path=str(tmp_path), audio_column="sound", name_column="id"))
    assert bytes_of(found) == {"7": b"1", "8": b"2"}


# What is broken


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


# Changes


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_container_that_was_replaced_gives_no_clip_under_anothers_name(tmp_path: Path, kind: str) -> None:
    data = [clip_bytes(0), clip_bytes(3)]  # of one size
    if kind == "webdataset":
        found = listed(web(pack(tmp_path / "a.tar", {"1.wav": data[0], "2.wav": data[1]})))
        pack(tmp_path / "a.tar", {"2.wav": data[1], "1.wav": data[0]})
    else:
        found = listed(
            ParquetDataset(path=str(write_parquet(tmp_path / "a.parquet", dict(zip("12", data, strict=True)))))
        )
        write_parquet(tmp_path / "a.parquet", dict(zip("21", [data[1], clip_bytes(1)], strict=True)))
    assert set(bytes_of(found).values()) == {"unreadable"}


@pytest.mark.slow
def test_a_tar_that_changed_is_embedded_anew_by_the_next_command(tmp_path: Path) -> None:
    tars = tmp_path / "data"
    pack(tars / "a.tar", some(0, 4))
    pack(tars / "b.tar", some(4, 8))
    settings = ("dataset=webdataset", f"dataset.path={tars}")
    first, run = embed(tmp_path, "one", *settings)
    before = {path.name: path.stat().st_ino for path in run.glob("embeddings/*")}
    pack(tars / "b.tar", {"0.wav": clip_bytes(40)} | some(4, 7) | {"dog/x.mp3": clip_bytes(41, "MP3", 44_100)})
    second, _ = embed(tmp_path, "one", *settings)
    after = {path.name: path.stat().st_ino for path in run.glob("embeddings/*")}
    assert [name for name in before if before[name] != after[name]] == ["part-00001.parquet"]
    fresh, beside = embed(tmp_path, "two", *settings)
    assert second["dataset"]["clips"] == fresh["dataset"]["clips"] == first["dataset"]["clips"] + 1
    found, expected = (
        pq.read_table(each / "embeddings").sort_by([("clip", "ascending"), ("example", "ascending")])
        for each in (run, beside)
    )
    assert found.select(["clip", "embedding"]).equals(expected.select(["clip", "embedding"]))


def test_a_container_is_listed_once_for_as_long_as_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "a.tar", some(0, 4))
    first = listed(web(path), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("runner.dataset.packed.manifest.scan_tar", None)
        assert listed(web(path), tmp_path).table.equals(first.table)
        assert listed(web(path), tmp_path).ignored == first.ignored
    pack(path, some(0, 5))
    assert listed(web(path), tmp_path).table.num_rows == 5


def test_a_tar_that_is_gone_or_that_comes_back_leaves_a_finished_run_finished(tmp_path: Path) -> None:
    tars = tmp_path / "data"
    pack(tars / "0.tar", some(0, 2))
    pack(tars / "1.tar", some(2, 4))
    settings = ("dataset=webdataset", f'dataset.path="{tars}/{{0..2}}.tar"')
    first, run = embed(tmp_path, "one", *settings)
    assert first["skipped"] == {"missing": 1}
    pack(tars / "2.tar", some(4, 5))
    (tars / "0.tar").unlink()
    for _ in range(2):
        after, _ = embed(tmp_path, "one", *settings)
        reasons = dict(
            zip(*(pq.read_table(run / "clips.parquet")[name].to_pylist() for name in ("clip", "reason")), strict=True)
        )
        assert reasons == {**dict.fromkeys(some(0, 5)), "2.tar": "missing", "0.tar": "missing"}
    assert after["metrics"]["attempt_clips"] == 1 + 1, "the new clip, and the tar that is gone now"


# Object stores


@pytest.fixture(scope="module")
def store(tars: Path, parquets: Path) -> Iterator[StoreServer]:
    with object_store() as store:
        files = {
            f"{root.name}/{path.relative_to(root)}": path.read_bytes()
            for root in (tars, parquets)
            for path in sorted(root.rglob("*.*"))
        }
        long = {f"{number}.wav": clip_bytes(number, rate=48_000, channels=2) for number in range(60)}
        pack(tars.parent / "many.tar", long)
        store.bucket("data", files | {"many.tar": (tars.parent / "many.tar").read_bytes()})
        yield store


@pytest.mark.slow
def test_tars_in_a_store_are_read_in_runs_of_members(store: StoreServer, tars: Path) -> None:
    url = f"s3://data/{tars.name}"
    store.behave()
    found = listed(web(url))
    assert rows_of(found) == rows_of(listed(web(tars)))
    assert Counter(store.reads()) == Counter(
        {f"data/{tars.name}/{name}": 1 for name in ("part-000.tar", "part-001.tar", "sub/part-002.tar")}
    )
    store.behave()
    assert bytes_of(found) == CLIPS
    assert len(store.reads()) == 3, "a request a tar"
    many = listed(web("s3://data/many.tar"))
    store.behave()
    assert len(bytes_of(many)) == 60
    size = sum(many.table["bytes"].to_pylist())
    assert len(store.reads()) == -(-size // MAX_REQUEST_BYTES)


def test_a_run_that_is_resumed_reads_from_its_first_member_on(store: StoreServer) -> None:
    found = listed(web("s3://data/many.tar"))
    place = parse_address(found.table["path"][57].as_py())
    assert isinstance(place, TarMember)
    store.behave()
    got = bytes_of(Manifest("", found.table.slice(57), "", False, ""))
    assert len(got) == 3
    assert len(store.reads()) == 1


def test_parquet_in_a_store(store: StoreServer, parquets: Path) -> None:
    url = f"s3://data/{parquets.name}"
    found = listed(ParquetDataset(path=url))
    assert rows_of(found) == rows_of(listed(ParquetDataset(path=str(parquets))))
    store.behave()
    assert bytes_of(found) == {**CLIPS, "empty.wav": "empty"}


def test_a_store_that_fails_is_asked_again_or_costs_the_runs_clips(store: StoreServer, tars: Path) -> None:
    found = listed(web(f"s3://data/{tars.name}/part-000.tar"))
    store.behave()
    seen: Counter[str] = Counter()

    def once(method: str, key: str) -> str | None:
        seen[key] += 1
        return "drop" if seen[key] == 1 else None

    store.fault = once
    assert bytes_of(found) == some(0, 4)
    store.fault = lambda method, key: "broken"
    assert set(bytes_of(found, timeout_s=0.3).values()) == {"download_timeout"}
    with pytest.raises(DatasetError, match=r"can't be read|can't be listed"):
        listed(web(f"s3://data/{tars.name}/part-000.tar", download_timeout_s=0.3))
    store.behave()


@pytest.mark.slow
def test_a_long_member_is_of_one_object_though_it_is_read_in_pieces(
    store: StoreServer, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.dataset.packed.clips._MAX_IN_MEMORY", 1000)
    for module in ("storage.ranges", "dataset.packed.clips"):
        monkeypatch.setattr(f"runner.{module}.MAX_REQUEST_BYTES", 20_000)
    store.behave()
    assert bytes_of(listed(web(f"s3://data/{tars.name}"))) == CLIPS
    old, new = (pack(tmp_path / "a.tar", {"a.wav": clip_bytes(number)}).read_bytes() for number in (2, 5))
    client = store.client()
    client.put_object(Bucket="data", Key="y/a.tar", Body=old)
    found = listed(web("s3://data/y/a.tar"))
    store.behave()

    def replaced(method: str, key: str) -> None:
        if len(store.reads()) == 3:
            client.put_object(Bucket="data", Key="y/a.tar", Body=new)

    store.fault = replaced
    assert bytes_of(found) == {"a.wav": clip_bytes(5)}
    store.behave()


def test_an_object_that_was_replaced_is_noticed(store: StoreServer, tmp_path: Path) -> None:
    client = store.client()
    client.put_object(Bucket="data", Key="x/a.tar", Body=pack(tmp_path / "a.tar", some(0, 2)).read_bytes())
    found = listed(web("s3://data/x/a.tar"))
    client.put_object(Bucket="data", Key="x/a.tar", Body=pack(tmp_path / "a.tar", some(1, 3)).read_bytes())
    assert set(bytes_of(found).values()) == {"unreadable"}
