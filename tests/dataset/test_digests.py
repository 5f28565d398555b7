"""Digests of data sets and of shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa

from runner.core.span import Span
from runner.dataset.digests import digest_of, row_digests
from runner.dataset.table import SCHEMA
from tests.dataset.manifests import clips_of, list_file, list_folder, put_files


def test_the_digest_is_of_the_data_and_not_of_where_it_lies(root: Path, tmp_path: Path) -> None:
    put_files(root, "a/x.wav", "b/y.wav")
    shutil.copytree(root, tmp_path / "copy")
    digest = list_folder(root).digest

    assert len(bytes.fromhex(digest)) == 16
    assert list_folder(tmp_path / "copy").digest == digest
    assert list_folder(root, label_from="none").digest != digest
    (root / "a/x.wav").write_bytes(b"longer sound")
    assert list_folder(root).digest != digest


def test_absolute_and_relative_paths_below_the_root_are_the_same_data(root: Path, tmp_path: Path) -> None:
    put_files(root, "a/x.wav")
    (tmp_path / "link").symlink_to(root)
    relative = list_file(tmp_path / "m.csv", "path\na/x.wav\n", root)

    for absolute in (root / "a/x.wav", tmp_path / "link/a/x.wav"):
        manifest = list_file(tmp_path / "m.csv", f"path\n{absolute}\n", tmp_path / "link")
        assert clips_of(manifest) == ["a/x.wav"]
        assert manifest.digest == relative.digest


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


def test_a_shards_digest_is_of_its_rows_alone_and_of_all_that_is_known_of_them(root: Path) -> None:
    put_files(root, *(f"{number}.wav" for number in range(9)))
    table = list_folder(root).table
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
