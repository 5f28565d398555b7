"""What an argument of ``vggish-runner fad`` names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runner.core.errors import RunnerError
from runner.evaluation.sources import find_sets
from runner.statistics.files import to_npz
from runner.statistics.moments import EmbeddingStatistics
from tests.evaluation.runs import CLIP_EXAMPLES, embeddings, make_run

ROWS = embeddings(0)


def test_a_run_is_its_statistics_and_its_embeddings(tmp_path: Path) -> None:
    (run,) = find_sets(str(make_run(tmp_path / "run", ROWS)) + "/")
    assert run.summary.n == len(ROWS)
    np.testing.assert_allclose(run.summary.covariance, np.cov(ROWS.astype(float), rowvar=False), atol=1e-12)
    assert run.summary.about["weights.checksum"] == "ab" * 32
    assert run.blocks is not None
    blocks = list(run.blocks())
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), ROWS)
    together: dict[str, int] = {}
    for block in blocks:
        for name, n in zip(block.clips, np.diff(block.ends, prepend=0).tolist(), strict=True):
            together[name] = together.get(name, 0) + n
    assert list(together.items()) == [(f"clip{number}.wav", n) for number, n in enumerate(CLIP_EXAMPLES)]


def test_a_run_without_statistics_has_them_from_its_embeddings(tmp_path: Path) -> None:
    (with_file,) = find_sets(str(make_run(tmp_path / "new", ROWS)))
    (without,) = find_sets(str(make_run(tmp_path / "old", ROWS, statistics=False)))
    np.testing.assert_allclose(without.summary.covariance, with_file.summary.covariance, rtol=1e-12, atol=1e-15)
    assert (without.summary.n, without.summary.about["frontend.hop_s"]) == (len(ROWS), "0.96")


def test_npz_files_of_clips_are_a_runs_embeddings_too(tmp_path: Path) -> None:
    (tmp_path / "npz" / "a").mkdir(parents=True)
    for name, rows in (("a/x", ROWS[:10]), ("y", ROWS[10:300])):
        np.savez(tmp_path / "npz" / f"{name}.npz", embedding=rows, clip=np.array(f"{name}.wav"))
    (run,) = find_sets(str(tmp_path))
    assert run.summary.n == 300
    assert run.blocks is not None
    assert [block.clips for block in run.blocks()] == [["a/x.wav"], ["y.wav"]]


def test_a_sweep_and_a_folder_of_runs_are_all_their_runs(tmp_path: Path) -> None:
    for day in ("2026-11-29", "2026-11-30"):
        for time in ("10-00-00", "11-00-00"):
            make_run(tmp_path / "runs" / day / time, ROWS)
    assert [Path(run.name).parts[-2:] for run in find_sets(str(tmp_path))] == [
        ("2026-11-29", "10-00-00"),
        ("2026-11-29", "11-00-00"),
        ("2026-11-30", "10-00-00"),
        ("2026-11-30", "11-00-00"),
    ]
    sweep = tmp_path / "runs" / "2026-11-30"
    (sweep / "sweep.json").write_text(json.dumps({"jobs": ["11-00-00"]}))
    assert [run.name for run in find_sets(str(sweep))] == [str(sweep / "11-00-00")]


def test_files_of_statistics_are_sets_without_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    path.write_bytes(to_npz(EmbeddingStatistics.of(ROWS), {}))
    (found,) = find_sets(str(path))
    assert (found.summary.n, found.blocks) == (len(ROWS), None)
    np.save(tmp_path / "mu.npy", found.summary.mean)
    np.save(tmp_path / "cov.npy", found.summary.covariance)
    assert find_sets(str(tmp_path))[0].summary.n is None
    np.save(tmp_path / "rows.npy", ROWS)
    (array,) = find_sets(str(tmp_path / "rows.npy"))
    assert array.blocks is not None
    assert [len(block.rows) for block in array.blocks()] == [len(ROWS)]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_what_holds_no_embeddings_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunnerError, match=f"{name} (is not there|holds no embeddings): give"):
        find_sets(str(tmp_path / name))


def test_a_run_of_a_single_example_is_told(tmp_path: Path) -> None:
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "x.npz", embedding=ROWS[:1], clip=np.array("x.wav"))
    with pytest.raises(RunnerError, match="has 1 examples, which have no covariance"):
        find_sets(str(tmp_path))


def test_a_damaged_file_is_told_by_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, statistics=False)
    (run / "embeddings" / "part-00001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(RunnerError, match=r"part-00001\.parquet can(no|')t be read"):
        find_sets(str(run))
