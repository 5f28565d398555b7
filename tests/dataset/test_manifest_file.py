"""Manifests from CSV and Parquet files: order, segments, paths, and one error for each bad file."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from runner.config.schema import ManifestDataset
from runner.core.errors import DatasetError
from runner.dataset.manifest import build_manifest
from runner.dataset.table import SCHEMA
from tests.dataset.manifests import clips_of, list_file, put_files


def test_a_csv_keeps_its_order_its_segments_and_its_missing_files(root: Path) -> None:
    put_files(root, "b.wav", "sub/a, quoted.wav")
    manifest = list_file(
        root / "m.csv",
        b"\xef\xbb\xbfnote,path,start,end,label\r\n"
        b"1,b.wav,1.5,3.0,dog\r\n"
        b'x,"sub/a, quoted.wav",,,\r\n'
        b"2,b.wav,0,,0\r\n"
        b"3,b.wav,,2,NA\r\n"
        b"4,gone.wav,,,cat\r\n",
    )

    assert clips_of(manifest) == ["b.wav#t=1.5,3", "sub/a, quoted.wav", "b.wav#t=0,", "b.wav#t=,2", "gone.wav"]
    assert manifest.table.schema == SCHEMA
    assert manifest.table["start"].to_pylist() == [1.5, None, 0.0, None, None]
    assert manifest.table["end"].to_pylist() == [3.0, None, None, 2.0, None]
    assert manifest.table["label"].to_pylist() == ["dog", None, "0", "NA", "cat"]
    assert manifest.table["bytes"].to_pylist() == [5, 5, 5, 5, -1]
    assert manifest.table["path"].to_pylist()[0] == os.fsencode(root.resolve() / "b.wav")
    assert manifest.description == f"5 clips of {root.resolve() / 'm.csv'}"


def test_paths_start_from_the_root_that_is_named(root: Path, tmp_path: Path) -> None:
    put_files(root, "a.wav")
    manifest = list_file(tmp_path / "m.csv", "path\na.wav\n", root)

    assert manifest.root == str(root.resolve())
    assert manifest.table["bytes"].to_pylist() == [5]


def test_parquet_gives_what_csv_gives(root: Path) -> None:
    put_files(root, "a.wav", "b.wav")
    rows = pa.table(
        {
            "path": pa.array(["a.wav", "b.wav"]).dictionary_encode(),
            "start": pa.array([0.1, None], pa.float32()),
            "end": pa.array([2, None], pa.int16()),
            "label": pa.array([7, None]),
            "embedding": [[1.0], [2.0]],
        }
    )
    parquet = list_file(root / "m.parquet", rows)
    csv = list_file(root / "m.csv", "path,start,end,label\na.wav,0.1,2,7\nb.wav,,,\n")

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
        list_file(root / "m.csv", content)


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
        list_file(root / "m.parquet", content)


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


def test_spellings_of_one_file_are_one_clip(root: Path) -> None:
    put_files(root, "a.wav", "sub/b.wav")
    for again in ("./a.wav", "sub/../a.wav", f"{root}//a.wav", ".//./a.wav"):
        with pytest.raises(DatasetError, match=r"row 2: a\.wav is in row 1 already"):
            list_file(root / "m.csv", f"path\na.wav\n{again}\n")
    manifest = list_file(root / "m.csv", f"path\n./a.wav\n{root}/sub//b.wav\n")
    assert clips_of(manifest) == ["a.wav", "sub/b.wav"]
    assert manifest.table["path"].to_pylist() == [os.fsencode(root.resolve() / name) for name in clips_of(manifest)]
    assert manifest.table["bytes"].to_pylist() == [5, 5]


def test_what_lies_above_a_link_is_not_what_its_spelling_says(root: Path, tmp_path: Path) -> None:
    put_files(root, "a.wav")
    put_files(tmp_path / "elsewhere", "folder/x.wav", "a.wav")
    (root / "link").symlink_to(tmp_path / "elsewhere" / "folder")
    (tmp_path / "elsewhere" / "a.wav").write_bytes(b"another sound")
    manifest = list_file(root / "m.csv", "path\na.wav\nlink/.././a.wav\n")
    assert clips_of(manifest) == ["a.wav", "link/../a.wav"]
    assert manifest.table["bytes"].to_pylist() == [5, 13]


def test_a_nul_in_a_label_is_an_error_that_names_the_row(root: Path) -> None:
    with pytest.raises(DatasetError, match="row 2: its label holds a NUL"):
        list_file(root / "m.parquet", pa.table({"path": ["a.wav", "b.wav"], "label": [None, "a\0b"]}))
