"""stats.npz of whole runs: of all embeddings, and of each once, whatever happened on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from runner.cli.merge import main
from runner.core.files import digest_file
from runner.output.state.journal import revoke
from runner.statistics.files import Summary, from_npz
from tests.whole_run import make_config, make_data, session

pytestmark = pytest.mark.slow


def statistics(run: Path) -> Summary:
    return from_npz("stats.npz", (run / "stats.npz").read_bytes())


def embeddings(run: Path) -> np.ndarray:
    column = pq.read_table(run / "embeddings")["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(-1, 128).astype(float)


def assert_of_all_embeddings(run: Path) -> None:
    rows, summary = embeddings(run), statistics(run)
    assert summary.n == len(rows)
    np.testing.assert_allclose(summary.mean, rows.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(summary.covariance, np.cov(rows, rowvar=False), atol=1e-14)


def test_a_run_leaves_the_statistics_of_its_embeddings_and_says_what_they_are(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "run"
    session(make_config(make_data(tmp_path / "data"), run), run)
    assert_of_all_embeddings(run)
    about = statistics(run).about
    assert about["weights.checksum"] == "0"
    assert (about["frontend.hop_s"], about["frontend.normalize"], about["precision"]) == ("0.96", "none", "float32")


def test_so_does_one_without_parquet(tmp_path: Path) -> None:
    data, whole, other = make_data(tmp_path / "data"), tmp_path / "disk" / "whole", tmp_path / "disk" / "other"
    session(make_config(data, whole), whole)
    session(make_config(data, other, "output.formats=[npz]"), other)
    assert not (other / "embeddings").exists()
    np.testing.assert_array_equal(statistics(other).covariance, statistics(whole).covariance)


def test_partitions_that_are_merged_are_as_one_run(tmp_path: Path) -> None:
    data, whole, merged = make_data(tmp_path / "data"), tmp_path / "disk" / "whole", tmp_path / "merged"
    session(make_config(data, whole), whole)
    parts = [tmp_path / "disk" / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        session(make_config(data, part, f"dataset.partition={number}/2"), part)
    assert main([*map(str, parts), "--output", str(merged)]) == 0
    assert_of_all_embeddings(merged)
    assert statistics(merged).about == statistics(whole).about
    np.testing.assert_allclose(statistics(merged).covariance, statistics(whole).covariance, rtol=1e-12, atol=1e-16)


def test_a_shard_that_is_done_again_counts_once(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "run"
    config = make_config(make_data(tmp_path / "data"), run)
    session(config, run)
    before = (run / "stats.npz").read_bytes()
    revoke(run / ".runner" / "journal.jsonl", [0])
    (run / "clips.parquet").unlink()
    (run / "stats.npz").unlink()
    session(config, run)
    assert (run / "stats.npz").read_bytes() == before


def test_shards_of_an_earlier_version_are_computed_from_their_files(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "run"
    config = make_config(make_data(tmp_path / "data"), run)
    session(config, run)
    before = statistics(run)
    make_older(run)
    session(config, run)
    np.testing.assert_allclose(statistics(run).covariance, before.covariance, rtol=1e-12, atol=1e-16)
    assert statistics(run).n == before.n


def make_older(run: Path) -> None:
    """Have a run as one of before there were statistics left it, but for the shard that was under way."""
    from dataclasses import replace

    from runner.output.state.journal import Journal, read_journal

    path = run / ".runner" / "journal.jsonl"
    entries, _ = read_journal(path)
    path.unlink()
    journal = Journal(path)
    for number, entry in entries.items():
        part = run / ".runner" / "clips" / f"part-{number:05d}.parquet"
        pq.write_table(pq.read_table(part), part, compression="zstd")
        files = {**entry.files, part.relative_to(run).as_posix(): digest_file(part)}
        if number:
            journal.append(replace(entry, files=files))
    journal.close()
    (run / "stats.npz").unlink()
