"""The rows of WebDataset tars and of Parquet columns are those of the unpacked files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from runner.config.schema import FolderDataset, ParquetDataset
from runner.dataset.packed.clips import PackedClips
from runner.dataset.window_types import is_int16
from tests.conftest import environment
from tests.dataset.packed.packs import CLIPS, EXTENSIONS, bytes_of, embed, listed, rows_of, web


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_run_gives_the_rows_of_the_unpacked_files(
    unpacked: tuple[dict[str, Any], Path], tars: Path, parquets: Path, tmp_path: Path, kind: str
) -> None:
    expected, beside = unpacked
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
        rows = found.table.select(["clip", "path"]).to_pylist()
        guessed = {row["clip"]: is_int16(row["path"], 16_000) for row in rows}
        assert guessed["cat/000.wav"]
        assert not guessed["dog/x.mp3"]
