"""The run's files: schema, order, metadata, and that a shard is there whole or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.config.schema import OutputConfig
from runner.core.errors import EngineError
from runner.core.files import write_atomic
from runner.output.formats import make_formats
from runner.output.parquet import ParquetShards, embedding_schema, embedding_table
from runner.output.rows import CLIP_SCHEMA, ClipRow, row_groups
from runner.output.state.journal import ShardEntry
from runner.output.verify import npz_files_exist, shards_with_damaged_npz
from runner.output.writer import ShardWriter, check_complete, write_clips_table
from runner.vggish.spec import VGGISH
from tests.writers import journaled_writer, vggish_info


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
        "embeddings": [
            np.full((examples, 128), len(clip), np.float32) + np.arange(examples, dtype=np.float32)[:, None]
        ],
    }
    return ClipRow(**{**values, **changes})


def make_writer(folder: Path, metadata: dict[str, str]) -> ShardWriter:
    return journaled_writer(folder, make_formats(OutputConfig(), folder, vggish_info(metadata), []))


def test_a_row_an_example_in_order() -> None:
    rows = [row("x", 2), row("skipped", 0), row("yy", 1, padded=True, start_s=5.0, label=None)]
    (group,) = row_groups(rows)
    table = embedding_table(group, vggish_info(hop_s=0.48))
    assert table.schema.equals(embedding_schema(VGGISH.outputs))
    assert table.column("clip").to_pylist() == ["x", "x", "yy"]
    assert table.column("example").to_pylist() == [0, 1, 0]
    assert table.column("start_s").to_pylist() == [0.0, 0.48, 5.0]
    assert table.column("padded").to_pylist() == [False, False, True]
    assert table.column("label").to_pylist() == ["a", "a", None]
    assert [embedding[0] for embedding in table.column("embedding").to_pylist()] == [1.0, 2.0, 2.0]


def test_only_the_last_example_of_a_padded_clip_is_padded() -> None:
    groups = list(row_groups([row("x", 3, padded=True)]))
    assert embedding_table(groups[0], vggish_info()).column("padded").to_pylist() == [False, False, True]


def test_no_examples_is_an_empty_file_of_the_same_schema(tmp_path: Path) -> None:
    (path,) = ParquetShards(tmp_path, vggish_info(), "zstd").write(0, [row("x", 0)])
    table = pq.read_table(path)
    assert table.num_rows == 0
    assert table.schema.equals(embedding_schema(VGGISH.outputs))


def test_shards_and_clips_whatever_order_they_come_in(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, {"model": "VGGish"})
    writer.write_shard(1, [row("c", 1)])
    writer.write_shard(0, [row("a", 2), row("b", 0)])
    write_clips_table(tmp_path, writer.committed, {"model": "VGGish"})
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

    def full_disk(file: pq.ParquetWriter, table: pa.Table) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runner.output.parquet.pq.ParquetWriter.write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        writer.write_shard(0, [row("a", 1)])
    assert not (tmp_path / "embeddings" / "part-00000.parquet").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_is_complete_when_every_clip_of_every_shard_has_one_end(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, {})
    writer.write_shard(0, [row("a", 2), row("b", 0)])
    writer.write_shard(1, [row("c", 1)])
    check_complete([(0, 2), (2, 3)], writer.committed)
    for shards in ([(0, 2), (2, 3), (3, 5)], [(0, 3), (3, 4)], [(0, 2), (2, 4)]):
        with pytest.raises(EngineError, match="are missing, or their counts don't add up"):
            check_complete(shards, writer.committed)
    entry = writer.committed[0]
    doubled = ShardEntry(0, entry.clips, entry.examples, entry.files, replace(entry.counts, embedded=2))
    with pytest.raises(EngineError, match="1 shards with 2 clips"):
        check_complete([(0, 2), (2, 3)], writer.committed | {0: doubled})


@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "list gone", "list cut"])
def test_npz_files_are_looked_at_as_all_others_are(tmp_path: Path, damage: str) -> None:
    writer = journaled_writer(tmp_path, make_formats(OutputConfig(formats=["npz"]), tmp_path, vggish_info(), []))
    for shard in range(3):
        writer.write_shard(shard, [row(f"{shard}/a", 2), row(f"{shard}/b", 0)])
    assert shards_with_damaged_npz(tmp_path, writer.committed) == []
    assert npz_files_exist(tmp_path, writer.committed)
    npz, listed = tmp_path / "npz" / "1" / "a.npz", tmp_path / ".runner" / "npz" / "part-00001.json"
    path = listed if damage.startswith("list") else npz
    data = path.read_bytes()
    if damage.endswith("gone"):
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage.endswith("cut") else data[:-40] + bytes(40))
    assert shards_with_damaged_npz(tmp_path, writer.committed) == [1]
    assert npz_files_exist(tmp_path, writer.committed) == (damage == "changed"), "a finished run is looked at by sizes"


def test_a_text_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x.json", "one")
    write_atomic(tmp_path / "x.json", "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "two")]
