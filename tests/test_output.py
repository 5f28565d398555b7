"""The run's files: schema, order, metadata, and that a shard is there whole or not at all."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.config import OutputConfig
from runner.files import write_atomic
from runner.formats import embedding_schema, embedding_table
from runner.output import CLIP_SCHEMA, ClipRow, RunWriter, make_formats


def row(clip: str, examples: int, **changes: object) -> ClipRow:
    values = {
        "clip": clip,
        "status": "embedded" if examples else "skipped",
        "reason": None if examples else "empty",
        "detail": None,
        "examples": examples,
        "seconds": 0.96 * examples,
        "sample_rate": 16_000,
        "channels": 1,
        "padded": False,
        "label": "a",
        "start_s": 0.0,
        "embeddings": np.full((examples, 128), len(clip), np.float32) + np.arange(examples, dtype=np.float32)[:, None],
    }
    return ClipRow(**{**values, **changes})


def make_writer(folder: Path, metadata: dict[str, str]) -> RunWriter:
    return RunWriter(folder, metadata, make_formats(OutputConfig(), folder, metadata, 0.96, []))


def test_a_row_an_example_in_order() -> None:
    table = embedding_table([row("x", 2), row("skipped", 0), row("yy", 1, padded=True, start_s=5.0, label=None)], 0.48)
    assert table.schema.equals(embedding_schema())
    assert table.column("clip").to_pylist() == ["x", "x", "yy"]
    assert table.column("example").to_pylist() == [0, 1, 0]
    assert table.column("start_s").to_pylist() == [0.0, 0.48, 5.0]
    assert table.column("padded").to_pylist() == [False, False, True]
    assert table.column("label").to_pylist() == ["a", "a", None]
    assert [embedding[0] for embedding in table.column("embedding").to_pylist()] == [1.0, 2.0, 2.0]


def test_only_the_last_example_of_a_padded_clip_is_padded() -> None:
    assert embedding_table([row("x", 3, padded=True)], 0.96).column("padded").to_pylist() == [False, False, True]


def test_no_examples_is_an_empty_table_of_the_same_schema() -> None:
    table = embedding_table([row("x", 0)], 0.96)
    assert table.num_rows == 0
    assert table.schema.equals(embedding_schema())


def test_shards_and_clips_whatever_order_they_come_in(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, {"model": "VGGish"})
    writer.write_shard(1, [row("c", 1)])
    writer.write_shard(0, [row("a", 2), row("b", 0)])
    writer.close()
    assert sorted(path.name for path in (tmp_path / "embeddings").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    clips = pq.read_table(tmp_path / "clips.parquet")
    assert clips.schema.equals(CLIP_SCHEMA)
    assert clips.column("clip").to_pylist() == ["a", "b", "c"]
    assert clips.column("status").to_pylist() == ["embedded", "skipped", "embedded"]
    assert pq.read_table(tmp_path / "embeddings").column("clip").to_pylist() == ["a", "a", "c"]
    for file in (*(tmp_path / "embeddings").iterdir(), tmp_path / "clips.parquet"):
        assert pq.read_schema(file).metadata[b"vggish_runner.model"] == b"VGGish"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_write_that_fails_leaves_no_file_of_the_right_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer(tmp_path, {})

    def full_disk(table: pa.Table, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runner.formats.pq.write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        writer.write_shard(0, [row("a", 1)])
    assert not (tmp_path / "embeddings" / "part-00000.parquet").exists()


def test_a_text_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x.json", "one")
    write_atomic(tmp_path / "x.json", "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "two")]
