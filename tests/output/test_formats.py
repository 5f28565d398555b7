"""Parquet, TFRecord and npz output as their readers see them, and names that a file system would not take."""

from __future__ import annotations

import contextlib
import csv
import inspect
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config.groups.output import OutputConfig
from runner.core import files
from runner.core.errors import ResumeError
from runner.core.layout import FORMATS, RunLayout
from runner.core.model_spec import Output
from runner.output.formats import make_formats
from runner.output.npz import NpzFiles, npz_path
from runner.output.parquet import ParquetShards
from runner.output.rows import ClipRow, EmbeddingInfo, PostprocessedColumn
from runner.output.tfrecord import TfrecordShards, label_numbers
from tests.conftest import PROJECT
from tests.writers import vggish_info


def row(clip: str, examples: int, label: str | None = "dog", start_s: float = 0.0) -> ClipRow:
    rng = np.random.default_rng(examples)
    return ClipRow(
        clip=clip,
        status="embedded" if examples else "skipped",
        reason=None if examples else "empty",
        detail=None,
        examples=examples,
        seconds=0.96 * examples + 0.3,
        sample_rate=16_000,
        channels=1,
        padded=False,
        label=label,
        start_s=start_s,
        embeddings=rng.normal(0, 1, (examples, 128)).astype(np.float32),
    )


def quantize(embeddings: np.ndarray) -> np.ndarray:
    return (embeddings * 50 + 128).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_shards_and_its_metadata_into_its_folder(tmp_path: Path, name: str) -> None:
    output = OutputConfig(formats=[name], postprocess="audioset")
    (made,) = make_formats(output, tmp_path, vggish_info(), ["dog"], quantize)
    made.write(0, [row("a.wav", 2), row("broken.wav", 0)])
    folder = FORMATS[name].folder
    assert {path.name for path in tmp_path.iterdir()} - {RunLayout.state} == {folder}
    names = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / folder).rglob("*") if path.is_file()}
    metadata = set(FORMATS[name].metadata)
    assert metadata < names
    assert (
        all(Path(shard).name.startswith("part-00000.") for shard in names - metadata) is not FORMATS[name].is_per_clip
    )


@pytest.mark.parametrize("name", FORMATS)
def test_another_process_may_make_a_formats_writers_at_the_same_time(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several write the shards of a run where there is a GPU; here the other one makes its own in the midst of ours."""
    output, flush = OutputConfig(formats=[name], postprocess="audioset"), files.flush

    def make_others(path: Path) -> None:
        monkeypatch.setattr(files, "flush", flush)
        with pytest.MonkeyPatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            make_formats(output, tmp_path, vggish_info(), ["dog"], quantize)
        flush(path)

    monkeypatch.setattr(files, "flush", make_others)
    make_formats(output, tmp_path, vggish_info(), ["dog"], quantize)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(FORMATS[name].metadata)


def test_formats_have_folders_of_their_own_and_are_in_the_documentation() -> None:
    assert len({each.folder for each in FORMATS.values()}) == len(FORMATS)
    keys, page = inspect.getsource(OutputConfig), (PROJECT / "docs/reference/output-files.md").read_text("utf-8")
    assert [name for name in FORMATS if not re.search(rf"Any of .*\b{name}\b", keys) or f"| `{name}`" not in page] == []


@pytest.mark.slow
def test_a_plain_reader_of_audiosets_format_parses_the_tfrecords(tmp_path: Path) -> None:
    import tensorflow as tf

    rows = [row("dogs/a.wav", 3, "dog", 1.5), row("broken.wav", 0), row("b.wav", 1, None), row("c.wav", 2, "cat")]
    TfrecordShards(tmp_path, vggish_info({"model": "VGGish"}), ["dog", "cat"], quantize).write(4, rows)

    def parse(record):
        context, features = tf.io.parse_single_sequence_example(
            record,
            context_features={
                "video_id": tf.io.FixedLenFeature([], tf.string),
                "start_time_seconds": tf.io.FixedLenFeature([], tf.float32),
                "end_time_seconds": tf.io.FixedLenFeature([], tf.float32),
                "labels": tf.io.VarLenFeature(tf.int64),
            },
            sequence_features={"audio_embedding": tf.io.FixedLenSequenceFeature([], tf.string)},
        )
        return context, tf.io.decode_raw(features["audio_embedding"], tf.uint8)

    found = list(tf.data.TFRecordDataset(str(tmp_path / "tfrecord" / "part-00004.tfrecord")).map(parse))
    assert [context["video_id"].numpy().decode() for context, _ in found] == ["dogs/a.wav", "b.wav", "c.wav"]
    assert [tf.sparse.to_dense(context["labels"]).numpy().tolist() for context, _ in found] == [[1], [], [0]]
    for (context, values), expected in zip(found, [rows[0], rows[2], rows[3]], strict=True):
        assert np.array_equal(values.numpy(), quantize(expected.embeddings))
        assert context["start_time_seconds"].numpy() == pytest.approx(expected.start_s)
        assert context["end_time_seconds"].numpy() == pytest.approx(expected.start_s + expected.seconds)
    assert (tmp_path / "tfrecord" / "labels.csv").read_text() == "index,label\n0,cat\n1,dog\n"
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_tfrecords_of_a_model_without_a_projection_have_floats_by_output(tmp_path: Path) -> None:
    import tensorflow as tf

    info = EmbeddingInfo({}, 0.96, (Output("embedding", 100), Output("scores", 28)))
    (path,) = TfrecordShards(tmp_path, info, ["dog"]).write(0, [row("a.wav", 3), row("broken.wav", 0)])
    (record,) = tf.data.TFRecordDataset(str(path))
    features = {output.name: tf.io.FixedLenSequenceFeature([output.width], tf.float32) for output in info.outputs}
    _, lists = tf.io.parse_single_sequence_example(record, sequence_features=features)
    assert [tuple(lists[name].shape) for name in features] == [(3, 100), (3, 28)]
    rows = np.concatenate([lists["embedding"], lists["scores"]], axis=1)
    np.testing.assert_array_equal(rows, row("a.wav", 3).embeddings)


@pytest.mark.parametrize("extra", ["embedding_pca", "embedding_u8"])
def test_float_vectors_are_split_by_byte_and_come_back_bit_for_bit(tmp_path: Path, extra: str) -> None:
    rows = [row("a.wav", 1000), row("b.wav", 300)]
    process = {"embedding_pca": np.negative, "embedding_u8": quantize}[extra]
    (path,) = ParquetShards(tmp_path, vggish_info(), "zstd", PostprocessedColumn(extra, process)).write(0, rows)
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    split = {column.path_in_schema for column in columns if "BYTE_STREAM_SPLIT" in column.encodings}
    assert split == {"embedding.list.element"} | {f"{extra}.list.element"} - {"embedding_u8.list.element"}
    table, vectors = pq.read_table(path), np.concatenate([clip.embeddings for clip in rows])
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), vectors)
    np.testing.assert_array_equal(np.stack(table[extra].to_numpy()), process(vectors))


def test_labels_that_are_numbers_keep_them() -> None:
    assert label_numbers(["74", "0", "137"]) == {"0": 0, "74": 74, "137": 137}
    assert label_numbers(["74", "dog"]) == {"74": 0, "dog": 1}
    assert label_numbers([]) == {}
    assert label_numbers(["1", "01"]) == {"01": 0, "1": 1}


def test_an_npz_lies_at_its_clips_path(tmp_path: Path) -> None:
    rows = [row("dogs/é a.wav", 3, None, 1.5), row("dogs/é a.flac", 1), row("broken.wav", 0)]
    NpzFiles(tmp_path, vggish_info({"model": "VGGish"}), PostprocessedColumn("embedding_u8", quantize)).write(0, rows)
    names = sorted(str(path.relative_to(tmp_path / "npz")) for path in tmp_path.rglob("*.npz"))
    assert names == ["dogs/é a.flac.npz", "dogs/é a.wav.npz"]
    with np.load(tmp_path / "npz" / "dogs/é a.wav.npz", allow_pickle=False) as found:
        assert np.array_equal(found["embedding"], rows[0].embeddings)
        assert np.array_equal(found["embedding_u8"], quantize(rows[0].embeddings))
        assert found["start_s"] == pytest.approx([1.5, 2.46, 3.42])
        assert (str(found["clip"]), str(found["label"]), bool(found["padded"])) == ("dogs/é a.wav", "", False)
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_name_leaves_the_folder_or_is_too_long_for_it(tmp_path: Path) -> None:
    outside, long = ["/etc/passwd", "../../x.wav", "a/../b.wav"], ["ü" * 127 + ".wav", "x" * 251 + ".wav", "y" * 250]
    names = [*outside, *long, "new\nline"]
    NpzFiles(tmp_path, vggish_info()).write(0, [row(name, 1) for name in names])
    paths = list((tmp_path / "npz").rglob("*.npz"))
    assert len(paths) == len(names) == len({npz_path(name) for name in names})
    assert sorted(str(np.load(path)["clip"]) for path in paths) == sorted(names)
    assert len(list(tmp_path.rglob("*.npz"))) == len(names)


def test_a_later_session_keeps_the_numbers_that_labels_have(tmp_path: Path) -> None:
    TfrecordShards(tmp_path, vggish_info(), ["dog", "owl"], quantize)
    TfrecordShards(tmp_path, vggish_info(), ["cat", "dog", "owl", "ant"], quantize)
    with (tmp_path / "tfrecord/labels.csv").open() as file:
        assert {row["label"]: row["index"] for row in csv.DictReader(file)} == {
            "dog": "0", "owl": "1", "ant": "2", "cat": "3"
        }  # fmt: skip


def test_labels_of_any_text_have_their_numbers_again_in_a_later_session(tmp_path: Path) -> None:
    labels = ["a\rb", "a\nb", "a\r\nb", 'say "so", twice', "\r", "", " ", "ä\u2028", "0"]
    first = TfrecordShards(tmp_path, vggish_info(), labels, quantize)._numbers
    assert TfrecordShards(tmp_path, vggish_info(), labels, quantize)._numbers == first == label_numbers(labels)
    with (tmp_path / "tfrecord/labels.csv").open(encoding="utf-8", newline="") as file:
        assert {row["label"]: int(row["index"]) for row in csv.DictReader(file)} == first


@pytest.mark.parametrize("text", [b"", b"index,label\n0,a\nx,b\n", b"a,b\n1,2\n", b"index,label\n\xff\xfe,a\n"])
def test_numbers_of_labels_that_cannot_be_read_are_told(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "tfrecord").mkdir()
    (tmp_path / "tfrecord/labels.csv").write_bytes(text)
    if not text:
        assert TfrecordShards(tmp_path, vggish_info(), ["a"], quantize)._numbers == {"a": 0}
        return
    with pytest.raises(ResumeError, match=r"labels\.csv can't be read .*restore it"):
        TfrecordShards(tmp_path, vggish_info(), ["a"], quantize)
    assert (tmp_path / "tfrecord/labels.csv").read_bytes() == text


def test_a_clip_that_is_skipped_when_its_shard_is_done_again_keeps_no_npz(tmp_path: Path) -> None:
    files = NpzFiles(tmp_path, vggish_info())
    files.write(0, [row("a", 1), row("b", 2)])
    files.write(1, [row("c", 1)])
    files.write(0, [row("a", 0), row("b", 3)])
    assert sorted(path.name for path in (tmp_path / "npz").glob("*.npz")) == ["b.npz", "c.npz"]
    assert len(np.load(tmp_path / "npz" / "b.npz")["embedding"]) == 3


def test_a_label_that_is_gone_gives_its_number_to_no_other(tmp_path: Path) -> None:
    """Rows with it may stay: their file is gone, and so is the label from the listing."""
    TfrecordShards(tmp_path, vggish_info(), ["ant", "bee"], quantize)
    assert TfrecordShards(tmp_path, vggish_info(), ["ant", "cat"], quantize)._numbers == {"ant": 0, "bee": 1, "cat": 2}


PARTS = ["", ".", "..", "a", "A", "a.npz", "a.wav", "a.wav.npz", "metadata.json", ".a.wav.npz.tmp", "~", "_up", "_root",
         "_empty", "_here", "_long", "x" * 236, "x" * 237, "x" * 300, "x" * 301, "ü" * 200, "\\", "\n"]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6), min_size=2, max_size=8))
def test_no_two_clips_have_one_npz_nor_one_the_others_for_a_folder(made: list[list[str]]) -> None:
    clips = {"/".join(parts) for parts in made} - {""}
    clips |= {npz_path(clip).as_posix().removesuffix(".npz") for clip in clips}  # clips called what was made for others
    paths = {npz_path(clip) for clip in clips}
    assert len(paths) == len(clips)
    folders = {folder for path in paths for folder in path.parents}
    assert not paths & folders
    assert Path("metadata.json") not in folders
    for path in paths:
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert all(len(part.encode()) <= 240 for part in path.parts)
        assert not any(part.endswith(".tmp") for part in path.parts)
        assert len(str(path).encode()) < 1300


@pytest.mark.slow
def test_tfrecords_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """A protobuf map has another order in each process: a run that is resumed must not differ for that.

    The other processes have ``tests.double.tfrecords`` for TensorFlow, which must write what TensorFlow does.
    """
    double = "from tests.double.framework import take_the_place_of_tensorflow as take; take()"
    code = """
import hashlib, sys
from pathlib import Path
from runner.output.tfrecord import TfrecordShards
from tests.output.test_formats import quantize, row
from tests.writers import vggish_info
from tests.writers import vggish_info
folder = Path(sys.argv[1])
folder.mkdir()
rows = [row(f"{n}.wav", 2) for n in range(20)]
(path,) = TfrecordShards(folder, vggish_info(), ["dog"], quantize).write(0, rows)
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""
    digests = [
        subprocess.run(
            [sys.executable, "-c", double + code, str(tmp_path / name)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("one", "two")
    ]
    with contextlib.redirect_stdout(io.StringIO()) as own, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", str(tmp_path / "own")])
        exec(code, {})
    assert len({*digests, own.getvalue()}) == 1
