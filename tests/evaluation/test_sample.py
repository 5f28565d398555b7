"""Reading a run's embeddings in bounded memory: the rows, and which of too many are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.config.groups.evaluate import EvaluateConfig
from runner.core.errors import EvaluationError, RunnerError
from runner.evaluation.annotations import Annotation, Annotations
from runner.evaluation.labels import FileLabels, Labels, RunLabels
from runner.evaluation.sample import Sample, draw_sample, read_clips
from runner.output.reader import EmbeddedClip
from tests.evaluation.labeled_runs import clip_row, labeled_clips, write_run


def taken(
    folder: Path, labels: Labels | None = None, unit: str = "clip", max_rows: int = 1000, seed: int = 0
) -> Sample:
    clips = read_clips(str(folder))
    return draw_sample(clips, labels or RunLabels(), unit=unit, window_s=0.96, max_rows=max_rows, seed=seed)


def test_a_clip_is_the_mean_of_its_windows_in_either_format(tmp_path: Path) -> None:
    rows = [*labeled_clips(recordings=4, windows=3), clip_row("none.wav", None, np.ones((2, 128)))]
    for npz in (False, True):
        sample = taken(write_run(tmp_path / f"npz-{npz}", rows, npz=npz))
        assert sample.clips == sorted(row.clip for row in rows if row.label)
        assert sample.unlabeled == 1
        by_name = {row.clip: row for row in rows}
        for clip, labels, embedding in zip(sample.clips, sample.labels, sample.embeddings, strict=True):
            assert labels == (by_name[clip].label,)
            np.testing.assert_allclose(embedding, np.asarray(by_name[clip].embeddings).mean(axis=0), rtol=1e-6)


def test_a_clip_longer_than_a_row_group_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.output.rows.GROUP_EXAMPLES", 7)
    rows = labeled_clips(recordings=3, windows=10)
    whole = taken(write_run(tmp_path, rows))
    assert len(whole.clips) == 9
    np.testing.assert_allclose(whole.embeddings[0], np.asarray(rows[0].embeddings).mean(axis=0), rtol=1e-5)
    assert len(taken(tmp_path, unit="window").clips) == 90


def test_the_sample_depends_on_names_and_seed_and_not_on_order_or_shards(tmp_path: Path) -> None:
    rows = labeled_clips(recordings=40)
    one = taken(write_run(tmp_path / "a", rows, shard_clips=7), max_rows=20)
    other = taken(write_run(tmp_path / "b", rows[::-1], shard_clips=50), max_rows=20)
    assert one.clips == other.clips
    assert one.seen == other.seen == 120
    np.testing.assert_array_equal(one.embeddings, other.embeddings)
    assert taken(tmp_path / "a", max_rows=20, seed=1).clips != one.clips


def test_windows_are_drawn_evenly_and_no_more_are_held_than_twice_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = 20_000
    block = EmbeddedClip("a.wav", "x", 0.96 * np.arange(windows), np.zeros((windows, 128), np.float32))
    from runner.evaluation import sample

    most = []
    add = sample._Draw.add

    def counting(draw: sample._Draw, key: int, row: object) -> None:
        add(draw, key, row)
        most.append(len(draw._kept))

    monkeypatch.setattr(sample._Draw, "add", counting)
    found = draw_sample([block], RunLabels(), unit="window", window_s=0.96, max_rows=500, seed=0)
    assert len(found.starts) == len(set(found.starts)) == 500
    assert max(most) <= 1000
    counts, _ = np.histogram(found.starts, bins=10, range=(0, 0.96 * windows))
    chi_square = ((counts - 50) ** 2 / 50).sum()
    assert chi_square < 33.7  # the 1 - 1e-4 quantile for 9 degrees of freedom


def test_windows_of_annotated_recordings_without_a_label_are_negatives(tmp_path: Path) -> None:
    rows = [clip_row(f"{name}.wav", None, np.full((3, 128), number)) for number, name in enumerate("abc")]
    annotations = Annotations([Annotation("a", "wren", 1.0, 1.5), Annotation("a", "robin", 1.2, 2.5)], ["a", "b"])
    sample = taken(write_run(tmp_path, rows), FileLabels(annotations, EvaluateConfig()), unit="window")
    assert [*zip(sample.clips, sample.starts, sample.labels, strict=True)] == [
        ("a.wav", 0.0, ()),
        ("a.wav", 0.96, ("robin", "wren")),
        ("a.wav", 1.92, ("robin",)),
        *(("b.wav", start, ()) for start in (0.0, 0.96, 1.92)),
    ]
    assert sample.unlabeled == 1


def test_a_part_of_a_file_is_aligned_by_its_place_in_the_file(tmp_path: Path) -> None:
    rows = [clip_row("a.wav#t=10,12", None, np.zeros((2, 128)), start_s=10.0)]
    labels = FileLabels(Annotations([Annotation("a.wav", "wren", 11.0, 11.5)], ["a.wav"]), EvaluateConfig())
    sample = taken(write_run(tmp_path, rows), labels, unit="window")
    assert sample.labels == [(), ("wren",)]
    assert sample.groups == ["a.wav"] * 2


def test_a_run_without_readable_embeddings_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="has no Parquet embeddings"):
        taken(tmp_path)
    with pytest.raises(EvaluationError, match="no embedded clip has a label"):
        taken(write_run(tmp_path, [clip_row("a.wav", None, np.ones((2, 128)))]))
