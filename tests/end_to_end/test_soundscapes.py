"""Runs of soundscapes: pooled embeddings, times of recording, slowed ultrasound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.cli.merge import main as merge
from runner.core.errors import ConfigError
from tests import whole_run

POOL = "output.pool=[1.92,4.8]"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings of two sites, of 4 to 9 seconds; one is broken."""
    folder = tmp_path_factory.mktemp("soundscapes") / "data"
    random = np.random.default_rng(2)
    for number in range(6):
        path = folder / "ab"[number % 2] / f"20230115_05300{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.uniform(-0.5, 0.5, (4 + number) * 16_000), 16_000)
    (folder / "a" / "20230115_053009.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def whole(recordings: Path) -> Path:
    run = recordings.parent / "whole"
    embed(recordings, run)
    return run


def embed(data: Path, run: Path, *arguments: str) -> dict[str, Any]:
    """Return result.json of a run of the data."""
    result = whole_run.session(whole_run.make_config(data, run, POOL, *arguments), run)
    assert not isinstance(result, str), result
    assert result["status"] == "finished", result
    return result


def pooled_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "pooled").iterdir()}


def test_a_runs_pooled_embeddings_are_those_of_its_examples(whole: Path) -> None:
    examples = pq.read_table(whole / "embeddings").to_pandas()
    rows = pq.read_table(whole / "pooled").to_pylist()
    for clip, own in examples.groupby("clip", sort=False):
        embeddings = np.stack(own["embedding"].to_list()).astype(np.float64)
        pooled = [row for row in rows if row["clip"] == clip]
        assert [row["pool_s"] for row in pooled][-1] is None
        for row in pooled:
            end_s = row["start_s"] + (row["pool_s"] or np.inf) - 1e-6
            inside = embeddings[(own["start_s"] >= row["start_s"] - 1e-6) & (own["start_s"] < end_s)]
            assert row["n"] == len(inside)
            assert row["mean"] == pytest.approx(inside.mean(axis=0), rel=1e-6, abs=1e-9)
            assert row["std"] == pytest.approx(inside.std(axis=0), rel=1e-5, abs=1e-9)
    assert {row["clip"] for row in rows} == set(examples["clip"])


def test_a_shard_whose_pooled_file_is_damaged_is_run_again(recordings: Path, whole: Path, tmp_path: Path) -> None:
    embed(recordings, tmp_path / "run")
    before = pooled_files(whole)
    assert pooled_files(tmp_path / "run") == before
    (tmp_path / "run" / "pooled" / "part-00001.parquet").write_bytes(b"other")
    (tmp_path / "run" / "pooled" / "part-00002.parquet").unlink()
    result = embed(recordings, tmp_path / "run")
    assert result["metrics"]["attempt_clips"] == 4
    assert pooled_files(tmp_path / "run") == before


def test_partitions_have_the_pooled_files_of_the_whole(recordings: Path, whole: Path, tmp_path: Path) -> None:
    parts = [tmp_path / str(number) for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        embed(recordings, part, f"dataset.partition={number}/2")
    assert merge([*map(str, parts), "--output", str(tmp_path / "merged")]) == 0
    assert pooled_files(tmp_path / "merged") == pooled_files(whole)
    merged = pq.read_table(tmp_path / "merged" / "clips.parquet")
    assert merged["recorded_at"].equals(pq.read_table(whole / "clips.parquet")["recorded_at"])


def test_clips_have_the_time_of_their_names(recordings: Path, whole: Path, tmp_path: Path) -> None:
    def times(folder: Path) -> list[str | None]:
        clips = pq.read_table(folder / "clips.parquet").to_pylist()
        return [clip["recorded_at"] for clip in sorted(clips, key=lambda clip: str(clip["clip"]).partition("/")[2])]

    assert times(whole) == [f"2023-01-15T05:30:0{second}" for second in (0, 1, 2, 3, 4, 5, 9)]
    embed(recordings, tmp_path / "none", "dataset.recorded_at=none")
    assert times(tmp_path / "none") == [None] * 7


def test_a_bat_slowed_ten_times_is_a_tone_that_can_be_heard(tmp_path: Path) -> None:
    wave = 0.5 * np.sin(2 * np.pi * 5 / 24 * np.arange(600_000))
    for name, rate in (("bat", 192_000), ("tone", 19_200)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", wave, rate)
    arguments = ("output.pool=[]", "dataset.label_from=none")
    result = embed(tmp_path / "bat", tmp_path / "slowed", "frontend.speed=0.1", "dataset.max_duration_s=4", *arguments)
    embed(tmp_path / "tone", tmp_path / "plain", *arguments)
    slowed, plain = (pq.read_table(tmp_path / run / "embeddings") for run in ("slowed", "plain"))
    assert slowed.num_rows == 32
    assert slowed["embedding"].equals(plain["embedding"])
    assert slowed["start_s"].to_pylist() == pytest.approx([0.096 * number for number in range(32)])
    (clip,) = pq.read_table(tmp_path / "slowed" / "clips.parquet").to_pylist()
    assert (clip["seconds"], clip["sample_rate"]) == (3.125, 192_000)
    assert result["metrics"]["audio_s"] == 3.125
    embed(tmp_path / "bat", tmp_path / "short", "frontend.speed=0.1", "dataset.max_duration_s=3", *arguments)
    assert pq.read_table(tmp_path / "short" / "clips.parquet")["reason"].to_pylist() == ["too_long"]


def test_windows_that_no_example_fills_are_refused(tmp_path: Path) -> None:
    words = r"output\.pool has 0\.5 s, which is less than the 0\.96 s from one example to the next"
    with pytest.raises(ConfigError, match=words):
        whole_run.make_config(tmp_path, tmp_path / "outputs" / "run", "output.pool=[0.5]")
