"""What all engines make alike: the clips of a manifest, of which only what is asked for is read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.dataset import clips
from runner.dataset.clips import read_clips

ROWS = 50


@pytest.mark.parametrize(
    "spans",
    [[(0, 50)], [(3, 4)], [(0, 10), (10, 20)], [(9, 31), (35, 36), (49, 50)], [(19, 21), (21, 22), (40, 50)], []],
)
def test_clips_are_those_of_the_spans_wherever_row_groups_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spans: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(clips, "_BATCH_ROWS", 7)
    names = [f"{row:02d}.wav" for row in range(ROWS)]
    columns = {"clip": names, "path": [name.encode() for name in names], "bytes": list(range(ROWS))}
    empty = {name: pa.nulls(ROWS, kind) for name, kind in (("start", pa.float64()), ("end", pa.float64()))}
    table = pa.table({**columns, **empty, "label": pa.nulls(ROWS, pa.string())})
    pq.write_table(table, tmp_path / "manifest.parquet", row_group_size=20)
    found = list(read_clips(tmp_path / "manifest.parquet", spans))
    wanted = [row for first, end in spans for row in range(first, end)]
    assert [(clip.number, clip.name, clip.bytes) for clip in found] == [(row, names[row], row) for row in wanted]
