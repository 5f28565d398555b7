"""Hoplite databases, opened and searched by perch-hoplite itself."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.converters import hoplite
from runner.converters.hoplite import export_hoplite
from runner.core.errors import RunnerError
from runner.output.reader import EmbeddingReader
from tests.converters.conftest import CLIPS
from tests.evaluation.test_search import write_run

pytest.importorskip("perch_hoplite", reason="perch-hoplite is not installed: make .venv/.peer")


def open_database(folder: Path) -> Any:
    from perch_hoplite.db.sqlite_usearch_impl import SQLiteUSearchDB

    return SQLiteUSearchDB.create(str(folder))


def test_perch_hoplite_finds_recordings_windows_and_labels(
    run: EmbeddingReader, embeddings: np.ndarray, tmp_path: Path
) -> None:
    assert export_hoplite(run, tmp_path / "db") == 40
    database = open_database(tmp_path / "db")
    recordings = {recording.id: recording.filename for recording in database.get_all_recordings()}
    assert list(recordings.values()) == list(dict.fromkeys(CLIPS))
    assert database.get_recording(1).datetime == datetime(2023, 1, 10, 5, 30)
    windows = database.get_all_windows()
    assert [recordings[window.recording_id] for window in windows] == CLIPS
    np.testing.assert_allclose(windows[7].offsets, [1.92, 1.92 + 0.975])
    vector = database.get_embedding(windows[7].id)
    np.testing.assert_allclose(vector, embeddings[7], rtol=1e-3, atol=1e-3)
    annotations = database.get_all_annotations()
    assert [annotation.label for annotation in annotations] == list("abcdefgh")
    np.testing.assert_allclose(annotations[0].offsets, [0, 4 * 0.96 + 0.975])


@pytest.mark.slow
def test_its_search_recalls_what_an_exact_one_finds(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    centers = random.standard_normal((40, 128))
    vectors = (centers[random.integers(0, 40, 3000)] + 0.5 * random.standard_normal((3000, 128))).astype(np.float32)
    folder = write_run(tmp_path / "run", vectors, [f"{row // 10}.wav" for row in range(3000)])
    export_hoplite(EmbeddingReader(str(folder)), tmp_path / "db")
    index = open_database(tmp_path / "db").ui
    queries = vectors[::60]
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10] + 1
    found = index.search(queries, 10).keys
    recall = np.mean([len(set(own) & set(best)) / 10 for own, best in zip(found, exact, strict=True)])
    assert recall >= 0.95


def test_a_conversion_that_was_stopped_goes_on(
    run: EmbeddingReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hoplite, "_SAVE_ROWS", 10)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done > 22:
            raise Killed

    with pytest.raises(Killed):
        export_hoplite(run, tmp_path / "db", kill)
    steps = list[int]()
    assert export_hoplite(run, tmp_path / "db", lambda done, total: steps.append(done)) == 40
    assert steps[0] > 20, "windows that were saved are not written again"
    database = open_database(tmp_path / "db")
    assert len(database.get_all_windows()) == 40
    assert len(database.get_all_annotations()) == 8
    assert len(database.ui) == 40


def test_rows_without_vectors_get_theirs(run: EmbeddingReader, tmp_path: Path) -> None:
    export_hoplite(run, tmp_path / "db")
    (tmp_path / "db" / "usearch.index").unlink()
    export_hoplite(run, tmp_path / "db")
    database = open_database(tmp_path / "db")
    assert (len(database.ui), len(database.get_all_annotations())) == (40, 8)


def test_a_complete_database_is_left_as_it_is(run: EmbeddingReader, tmp_path: Path) -> None:
    export_hoplite(run, tmp_path / "db")
    before = (tmp_path / "db" / "usearch.index").stat().st_mtime_ns
    export_hoplite(run, tmp_path / "db")
    assert (tmp_path / "db" / "usearch.index").stat().st_mtime_ns == before


def test_a_database_of_other_embeddings_is_refused(
    run: EmbeddingReader, embeddings: np.ndarray, tmp_path: Path
) -> None:
    other = EmbeddingReader(str(write_run(tmp_path / "other", embeddings[:20], CLIPS[:20])))
    export_hoplite(other, tmp_path / "db")
    with pytest.raises(RunnerError, match="holds a database of other embeddings"):
        export_hoplite(run, tmp_path / "db")
    with sqlite3.connect(tmp_path / "db" / "hoplite.sqlite") as database:
        assert database.execute("SELECT count(*) FROM windows").fetchone() == (20,)
