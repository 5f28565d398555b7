"""Containers that were replaced, changed or removed between the listing, the reading and the next command."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from runner.config.schema import ParquetDataset
from tests.dataset.packed.packs import bytes_of, clip_bytes, embed, listed, pack, some, web, write_parquet


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


@pytest.mark.slow
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
