"""The data set as a table of clips: folders, manifest files, and how the clips are cut into shards."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config.schema import DatasetConfig, FolderDataset, ManifestDataset
from runner.core.errors import DatasetError
from runner.core.span import Span
from runner.dataset.clip_names import display_name
from runner.dataset.digests import digest_of, row_digests
from runner.dataset.manifest import build_manifest, select_partition
from runner.dataset.shards import max_durations_s, plan_shards
from runner.dataset.table import SCHEMA, Manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def _put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")


def _folder(root: Path, **settings: Any) -> Manifest:
    dataset = FolderDataset(root=str(root), **({"extensions": ["wav", "flac"]} | settings))
    return build_manifest(dataset, root / "no-outputs")


def _file(path: Path, content: str | bytes | pa.Table, root: Path | None = None) -> Manifest:
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    dataset = ManifestDataset(path=str(path), root=str(root) if root else None)
    return build_manifest(dataset, path.parent / "no-outputs")


def _clips(manifest: Manifest) -> list[str]:
    clips: list[str] = manifest.table["clip"].to_pylist()
    return clips


# Folders


def test_a_folder_gives_its_sounds_in_one_order_with_labels_and_sizes(root: Path) -> None:
    _put(root, "top.wav", "dog/b.WAV", "dog/a.flac", "cat/deep/c.wav", "dog/Z.wav")
    manifest = _folder(root)

    assert manifest.table.schema == SCHEMA
    assert _clips(manifest) == ["cat/deep/c.wav", "dog/Z.wav", "dog/a.flac", "dog/b.WAV", "top.wav"]
    assert manifest.table["label"].to_pylist() == ["deep", "dog", "dog", "dog", None]
    assert manifest.table["bytes"].to_pylist() == [5] * 5
    assert manifest.table["start"].null_count == manifest.table["end"].null_count == 5
    assert [os.fsdecode(path) for path in manifest.table["path"].to_pylist()] == [
        str(root.resolve() / clip) for clip in _clips(manifest)
    ]
    assert manifest.description == f"5 clips in {root.resolve()}"
    assert not manifest.is_demo


def test_what_is_left_out_is_counted_by_why(root: Path) -> None:
    _put(root, "a.wav", "a.txt", "b.TXT", "README", "other/b.wav", ".hidden")
    manifest = _folder(root, pattern="a*", label_from="none")

    assert _clips(manifest) == ["a.wav"]
    assert manifest.ignored == {".txt": 2, "(no extension)": 2, "(not in dataset.pattern)": 1}
    assert manifest.table["label"].to_pylist() == [None]


def test_a_pattern_crosses_folders(root: Path) -> None:
    _put(root, "x/train/a.wav", "x/test/b.wav", "train/c.wav")

    assert _clips(_folder(root, pattern="*train/*")) == ["train/c.wav", "x/train/a.wav"]


def test_a_folder_without_clips_is_an_error_that_says_what_was_looked_for_and_what_is_there(root: Path) -> None:
    _put(root, "a.txt", "b.txt", "c.pdf")

    with pytest.raises(DatasetError, match=r"data holds no clips \(looked for \.flac, \.wav; found 2 \.txt, 1 \.pdf\)"):
        _folder(root)


def test_an_empty_folder_is_an_error(root: Path) -> None:
    with pytest.raises(DatasetError, match="found no files at all"):
        _folder(root)


def test_a_subfolder_that_cannot_be_listed_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(root, "a.wav", "closed/b.wav")
    listed = os.scandir

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    manifest = _folder(root)

    assert _clips(manifest) == ["a.wav"]
    assert manifest.ignored == {"(folder that can't be listed)": 1}


def test_links_to_folders_are_followed_and_loops_end(root: Path, tmp_path: Path) -> None:
    _put(root, "a/one.wav")
    _put(tmp_path / "elsewhere", "two.wav")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)

    assert _clips(_folder(root)) == ["a/one.wav", "linked/two.wav"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_what_only_decoding_can_refuse_stays_in(root: Path) -> None:
    _put(root, "good.wav")
    os.mkfifo(root / "pipe.wav")
    (root / "gone.wav").symlink_to(root / "nowhere")
    (root / "self.wav").symlink_to(root / "self.wav")
    sizes = dict(zip(_clips(manifest := _folder(root)), manifest.table["bytes"].to_pylist(), strict=True))

    assert sizes == {"good.wav": 5, "pipe.wav": 0, "gone.wav": -1, "self.wav": -1}


@pytest.mark.skipif(os.name != "posix", reason="file names are not bytes on this system")
def test_names_that_are_not_text_are_shown_escaped_and_still_lead_to_the_file(root: Path) -> None:
    for name in (b"\xff\xfe.wav", "äöü 日本.wav".encode(), b"line\nbreak.wav"):
        try:
            Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"sound")
        except OSError:
            pytest.skip("this file system takes only text for names")
    manifest = _folder(root)

    assert _clips(manifest) == ["line\nbreak.wav", "äöü 日本.wav", r"\xff\xfe.wav"]
    assert all(Path(os.fsdecode(path)).read_bytes() == b"sound" for path in manifest.table["path"].to_pylist())


def test_real_and_hostile_audio_is_listed_whole(audio: Path) -> None:
    hostile = audio / "hostile"
    every_extension = sorted({path.suffix for path in hostile.iterdir()} - {""})
    manifest = _folder(hostile, extensions=every_extension)

    assert set(_clips(manifest)) == {path.name for path in hostile.iterdir()}
    assert manifest.ignored == {}


# Digests


def test_the_digest_is_of_the_data_and_not_of_where_it_lies(root: Path, tmp_path: Path) -> None:
    _put(root, "a/x.wav", "b/y.wav")
    shutil.copytree(root, tmp_path / "copy")
    digest = _folder(root).digest

    assert len(bytes.fromhex(digest)) == 16
    assert _folder(tmp_path / "copy").digest == digest
    assert _folder(root, label_from="none").digest != digest
    (root / "a/x.wav").write_bytes(b"longer sound")
    assert _folder(root).digest != digest


def test_absolute_and_relative_paths_below_the_root_are_the_same_data(root: Path, tmp_path: Path) -> None:
    _put(root, "a/x.wav")
    (tmp_path / "link").symlink_to(root)
    relative = _file(tmp_path / "m.csv", "path\na/x.wav\n", root)

    for absolute in (root / "a/x.wav", tmp_path / "link/a/x.wav"):
        manifest = _file(tmp_path / "m.csv", f"path\n{absolute}\n", tmp_path / "link")
        assert _clips(manifest) == ["a/x.wav"]
        assert manifest.digest == relative.digest


# Demo clips


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [DatasetConfig(), FolderDataset(extensions=["wav"])], ids=["demo", "no root"])
def test_no_data_of_ones_own_means_the_demo_clips(tmp_path: Path, dataset: DatasetConfig) -> None:
    manifest = build_manifest(dataset, tmp_path)

    assert manifest.is_demo
    assert manifest.root == str(tmp_path / "demo")
    assert manifest.description == f"40 demo clips in {tmp_path / 'demo'}"
    assert manifest.ignored == {}
    assert set(manifest.table["label"].to_pylist()) > {"tone", "noise"}


# Manifest files


def test_a_csv_keeps_its_order_its_segments_and_its_missing_files(root: Path) -> None:
    _put(root, "b.wav", "sub/a, quoted.wav")
    manifest = _file(
        root / "m.csv",
        b"\xef\xbb\xbfnote,path,start,end,label\r\n"
        b"1,b.wav,1.5,3.0,dog\r\n"
        b'x,"sub/a, quoted.wav",,,\r\n'
        b"2,b.wav,0,,0\r\n"
        b"3,b.wav,,2,NA\r\n"
        b"4,gone.wav,,,cat\r\n",
    )

    assert _clips(manifest) == ["b.wav#t=1.5,3", "sub/a, quoted.wav", "b.wav#t=0,", "b.wav#t=,2", "gone.wav"]
    assert manifest.table.schema == SCHEMA
    assert manifest.table["start"].to_pylist() == [1.5, None, 0.0, None, None]
    assert manifest.table["end"].to_pylist() == [3.0, None, None, 2.0, None]
    assert manifest.table["label"].to_pylist() == ["dog", None, "0", "NA", "cat"]
    assert manifest.table["bytes"].to_pylist() == [5, 5, 5, 5, -1]
    assert manifest.table["path"].to_pylist()[0] == os.fsencode(root.resolve() / "b.wav")
    assert manifest.description == f"5 clips of {root.resolve() / 'm.csv'}"


def test_paths_start_from_the_root_that_is_named(root: Path, tmp_path: Path) -> None:
    _put(root, "a.wav")
    manifest = _file(tmp_path / "m.csv", "path\na.wav\n", root)

    assert manifest.root == str(root.resolve())
    assert manifest.table["bytes"].to_pylist() == [5]


def test_parquet_gives_what_csv_gives(root: Path) -> None:
    _put(root, "a.wav", "b.wav")
    rows = pa.table(
        {
            "path": pa.array(["a.wav", "b.wav"]).dictionary_encode(),
            "start": pa.array([0.1, None], pa.float32()),
            "end": pa.array([2, None], pa.int16()),
            "label": pa.array([7, None]),
            "embedding": [[1.0], [2.0]],
        }
    )
    parquet = _file(root / "m.parquet", rows)
    csv = _file(root / "m.csv", "path,start,end,label\na.wav,0.1,2,7\nb.wav,,,\n")

    assert parquet.table == csv.table
    assert parquet.digest == csv.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,start\na.wav,1\nb.wav,soon\n", r"row 2: start=soon is not a time: give seconds"),
        ("path,end\na.wav,nan\n", r"row 1: end=nan is not a time"),
        ("path,end\na.wav,inf\n", r"row 1: end=inf is not a time"),
        ("path,start\na.wav,-1\n", r"row 1: start=-1 is not a time"),
        ("path,start,end\na.wav,3,3\n", r"row 1: end=3\.0 is not after start=3\.0"),
        ("path,end\na.wav,0\n", r"row 1: end=0\.0 is not after start=0\.0"),
        ("path,label\na.wav,x\n,y\n", r"row 2: path is empty"),
        ("path\na.wav\nb.wav\na.wav\n", r"row 3: a\.wav is in row 1 already"),
        ("path,start\na.wav,1\na.wav,1.0\n", r"row 2: a\.wav#t=1, is in row 1 already"),
        ("file;label\na.wav;x\n", r"no column 'path' \(it has file;label\)"),
        ("path,path\na.wav,b.wav\n", r"several columns 'path'"),
        ("path,start\na.wav,1,2\n", r"can't be read as a manifest.*Expected 2 columns, got 3"),
        ("path,label\n", r"no rows"),
        ("", r"can't be read as a manifest \(Empty CSV file\)"),
        ("path\nä.wav\n".encode("latin-1"), r"invalid UTF8 data.*CSV \(UTF-8\)"),
    ],
)
def test_a_bad_csv_is_one_error_that_names_the_place(root: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=r"m\.csv.*" + message):
        _file(root / "m.csv", content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 this is no Parquet file", r"can't be read as a manifest"),
        (pa.table({"path": ["a.wav"], "label": [["x"]]}), r"column 'label' is of type list.*, not text"),
        (pa.table({"path": ["a.wav"], "start": [[1.0]]}), r"column 'start' is of type list.*, not text"),
        (pa.table({"path": ["a.wav"], "end": [True]}), r"row 1: end=true is not a time"),
        (pa.table({"path": [b"\xff.wav"]}), r"column 'path' is of type binary, not text"),
        (pa.table({"path": pa.array([None], pa.string())}), r"row 1: path is empty"),
    ],
)
def test_a_bad_parquet_is_one_error_too(root: Path, content: bytes | pa.Table, message: str) -> None:
    with pytest.raises(DatasetError, match=r"m\.parquet.*" + message):
        _file(root / "m.parquet", content)


# Shards


@pytest.mark.parametrize(
    ("n_clips", "clips_per_shard", "size"),
    [(1, None, 64), (64, None, 64), (10_000, None, 64), (100_000, None, 391), (5_000_000, None, 8192), (10, 3, 3)],
)
def test_shards_cover_every_clip_once_and_in_order(n_clips: int, clips_per_shard: int | None, size: int) -> None:
    shards = plan_shards(n_clips, clips_per_shard)

    assert shards[0][0] == 0
    assert shards[-1][1] == n_clips
    assert all(last == first for (_, last), (first, _) in itertools.pairwise(shards))
    assert all(last - first == size for first, last in shards[:-1])
    assert 0 < shards[-1][1] - shards[-1][0] <= size


@pytest.mark.parametrize(
    ("hours", "hop_s", "size"), [(1.0, 0.96, 69), (1.0, 0.48, 34), (48.0, 0.96, 1), (1000, 0.1, 1)]
)
def test_shards_of_long_clips_are_of_few(hours: float, hop_s: float, size: int) -> None:
    shards = plan_shards(1000, None, np.full(1000, 3600 * hours), hop_s)

    assert [clip for first, end in shards for clip in range(first, end)] == list(range(1000))
    assert {end - first for first, end in shards[:-1]} == {min(size, 64)}
    assert plan_shards(1000, 10, np.full(1000, 3600 * hours), hop_s)[0] == (0, 10), "as asked for"


def test_a_long_clip_among_short_ones_makes_its_own_shard_smaller() -> None:
    seconds = np.full(200, 10.0)
    seconds[70] = 300_000.0
    assert plan_shards(200, None, seconds) == [(0, 64), (64, 70), (70, 71), (71, 135), (135, 199), (199, 200)]


def test_how_long_a_clip_may_be(root: Path) -> None:
    table = pa.table(
        {
            "clip": ["a", "b", "c", "d", "e"],
            "path": [b"/x/\xff.WAV", b"/x/b.mp3", b"s3://x/c", b"s3://x/d", b"/x/e.flac"],
            "start": [1.0, None, 5.0, None, 99.0],
            "end": [3.0, None, 9.0, None, None],
            "label": pa.nulls(5, pa.string()),
            "bytes": [10_000_000, 40_000, -1, -1, 16_000],
            "mtime_ns": [0] * 5,
        },
        schema=SCHEMA,
    )
    assert max_durations_s(table).tolist() == [2.0, 10.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("data", [b"\xff\xfe,path\nx,a.wav\n", b"path,\xff\na.wav,x\n", b"path\n\xff.wav\n"])
def test_text_that_is_not_utf8_is_an_error_of_the_data_set(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "clips.csv").write_bytes(data)
    with pytest.raises(DatasetError, match="UTF-8"):
        build_manifest(ManifestDataset(path=str(tmp_path / "clips.csv")), tmp_path)


@pytest.mark.parametrize("path", ["../outside.wav", "/etc/passwd", "a/../../b.wav", "sub/../../data-2/x.wav"])
def test_paths_may_not_leave_the_root_unless_allowed(tmp_path: Path, path: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "clips.csv").write_text(f"path\ngood.wav\n{path}\n")
    with pytest.raises(DatasetError, match=r"row 2: .* is outside of .*allow_paths_outside_root"):
        build_manifest(ManifestDataset(path=str(root / "clips.csv")), tmp_path)
    allowed = ManifestDataset(path=str(root / "clips.csv"), allow_paths_outside_root=True)
    assert build_manifest(allowed, tmp_path).table.num_rows == 2


def test_clips_come_in_the_order_of_their_paths_bytes_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "a.wav",
        "a/b.wav",
        "a-b.wav",
        "a/b/c.wav",
        "a0.wav",
        "ä.wav",
        "z/ä/1.wav",
        "z.d/x.wav",
        "Z.wav",
        "a/b-.wav",
    ]
    _put(tmp_path, *names)
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"sound")
    whole = _folder(tmp_path)
    paths = whole.table["path"].to_pylist()
    assert paths == sorted(paths)
    assert len(paths) == len(names) + 1
    monkeypatch.setattr("runner.dataset.table.CHUNK_CLIPS", 3)
    monkeypatch.setattr("runner.dataset.folder.CHUNK_CLIPS", 3)
    chunked = _folder(tmp_path)
    assert chunked.table["clip"].num_chunks == 4
    assert chunked.table.equals(whole.table)
    assert chunked.digest == whole.digest


def test_the_digest_tells_apart_what_runs_together() -> None:
    def digest(clips: list[str], labels: list[str | None], ends: list[float | None]) -> str:
        rows = len(clips)
        columns = [clips, [b""] * rows, [None] * rows, ends, labels, [1] * rows, [0] * rows]
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
        return digest_of(pa.Table.from_arrays(arrays, schema=SCHEMA))

    found = {
        digest(["ab", "c"], [None, None], [None, None]),
        digest(["a", "bc"], [None, None], [None, None]),
        digest(["ab", "c"], ["", None], [None, None]),
        digest(["ab", "c"], [None, None], [0.0, None]),
        digest(["ab", "c"], [None, None], [None, 0.0]),
        digest(["ab"], [None], [None]),
    }
    assert len(found) == 6


# Names


def test_spellings_of_one_file_are_one_clip(root: Path) -> None:
    _put(root, "a.wav", "sub/b.wav")
    for again in ("./a.wav", "sub/../a.wav", f"{root}//a.wav", ".//./a.wav"):
        with pytest.raises(DatasetError, match=r"row 2: a\.wav is in row 1 already"):
            _file(root / "m.csv", f"path\na.wav\n{again}\n")
    manifest = _file(root / "m.csv", f"path\n./a.wav\n{root}/sub//b.wav\n")
    assert _clips(manifest) == ["a.wav", "sub/b.wav"]
    assert manifest.table["path"].to_pylist() == [os.fsencode(root.resolve() / name) for name in _clips(manifest)]
    assert manifest.table["bytes"].to_pylist() == [5, 5]


def test_what_lies_above_a_link_is_not_what_its_spelling_says(root: Path, tmp_path: Path) -> None:
    _put(root, "a.wav")
    _put(tmp_path / "elsewhere", "folder/x.wav", "a.wav")
    (root / "link").symlink_to(tmp_path / "elsewhere" / "folder")
    (tmp_path / "elsewhere" / "a.wav").write_bytes(b"another sound")
    manifest = _file(root / "m.csv", "path\na.wav\nlink/.././a.wav\n")
    assert _clips(manifest) == ["a.wav", "link/../a.wav"]
    assert manifest.table["bytes"].to_pylist() == [5, 13]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([b"\\", b"x", b"5c", b"ff", b"\xff", b"\xc3", b"\xa9"]), max_size=6)))
def test_different_names_are_shown_differently(names: list[list[bytes]]) -> None:
    different = {b"".join(name) for name in names}
    assert len({display_name(name) for name in different}) == len(different)


def test_a_name_of_bytes_and_one_that_reads_like_it_are_two_clips(root: Path) -> None:
    _put(root, os.fsdecode(b"\xff.wav"), r"\xff.wav", r"a\b.wav")
    assert set(_clips(_folder(root))) == {r"\xff.wav", r"\x5cxff.wav", r"a\b.wav"}


def test_cross_linked_folders_add_their_files_once_a_link(root: Path) -> None:
    names = "abcdefg"
    _put(root, *(f"{name}/{name}.wav" for name in names))
    for name, other in itertools.permutations(names, 2):
        (root / name / other).symlink_to(root / other)
    manifest = _folder(root)
    assert _clips(manifest) == sorted(
        [f"{name}/{name}.wav" for name in names]
        + [f"{name}/{other}/{other}.wav" for name, other in itertools.permutations(names, 2)]
    )
    assert manifest.ignored == {"(link to a folder that is listed already)": 42 * 6}


def test_links_below_links_lead_out_of_the_data_set_and_to_each_folder_once(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    _put(outside, "one/1.wav", "two/2.wav", "two/deep/3.wav")
    (outside / "one" / "two").symlink_to(outside / "two")
    (outside / "two" / "one").symlink_to(outside / "one")
    (root / "train").symlink_to(outside / "one")
    (root / "test").symlink_to(outside / "one")
    below = ["1.wav", "two/2.wav", "two/deep/3.wav"]
    assert _clips(_folder(root)) == [f"{link}/{name}" for link in ("test", "train") for name in below]


def test_a_nul_in_a_label_is_an_error_that_names_the_row(root: Path) -> None:
    with pytest.raises(DatasetError, match="row 2: its label holds a NUL"):
        _file(root / "m.parquet", pa.table({"path": ["a.wav", "b.wav"], "label": [None, "a\0b"]}))


# Parts


def test_fewer_shards_than_parts_are_refused_by_every_part_alike(root: Path) -> None:
    _put(root, *(f"{number}.wav" for number in range(3)))
    whole = _folder(root)
    for which in range(1, 6):
        with pytest.raises(DatasetError, match=f"partition={which}/5: .* only 3 shards"):
            select_partition(whole, which, 5, 1)
    assert [select_partition(whole, which, 3, 1).table.num_rows for which in (1, 2, 3)] == [1, 1, 1]


# Digests of shards


def test_a_shards_digest_is_of_its_rows_alone_and_of_all_that_is_known_of_them(root: Path) -> None:
    _put(root, *(f"{number}.wav" for number in range(9)))
    table = _folder(root).table
    shards = [Span(0, 4), Span(4, 5), Span(5, 9)]
    digests = row_digests(table, shards)
    assert len(set(digests)) == 3
    pieces = pa.concat_tables([table.slice(at, 2) for at in range(0, 9, 2)])
    assert row_digests(pieces, shards) == digests
    assert row_digests(table.slice(4, 1), [Span(0, 1)]) == digests[1:2]
    for name, value in (("clip", "x"), ("path", b"x"), ("start", 1.0), ("label", ""), ("bytes", 7), ("mtime_ns", 7)):
        values = table[name].to_pylist()
        values[4] = value
        place = table.schema.get_field_index(name)
        changed = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        now = row_digests(changed, shards)
        assert (now[0], now[2]) == (digests[0], digests[2])
        assert now[1] != digests[1], name
