"""The names and labels of packed clips, and the paths that name their containers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.config.schema import ParquetDataset
from runner.core.errors import ConfigError, DatasetError
from tests.configs import make_config
from tests.dataset.packed.packs import bytes_of, clip_bytes, listed, pack, some, web


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
        make_config(["dataset=webdataset", *settings])


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
