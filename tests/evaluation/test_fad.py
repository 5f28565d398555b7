"""Distances of runs from a reference, and when there must be none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.core.errors import RunnerError
from runner.evaluation.fad import FadOptions, Reference, differences, failures, measure
from runner.evaluation.scan import GROUPS
from runner.evaluation.sources import EmbeddingSet, find_sets
from runner.statistics.frechet import Gaussian, frechet_distance, frechet_limit
from runner.statistics.kernel import kernel_distance, median_distance
from runner.statistics.moments import EmbeddingStatistics
from tests.evaluation.runs import ABOUT, CLIP_EXAMPLES, embeddings, make_run

BASE, OTHER = embeddings(0), embeddings(1, 1.1, 0.05)


def one(folder: Path, rows: np.ndarray, about: dict[str, str] = ABOUT, **given: Any) -> EmbeddingSet:
    return find_sets(str(make_run(folder, rows, about, **given)))[0]


@pytest.fixture
def base(tmp_path: Path) -> Reference:
    return Reference(one(tmp_path / "base", BASE))


@pytest.fixture
def run(tmp_path: Path) -> EmbeddingSet:
    return one(tmp_path / "run", OTHER, clip="other")


@pytest.mark.slow
def test_the_distance_is_that_of_the_embeddings(base: Reference, run: EmbeddingSet) -> None:
    score = measure(base, run, FadOptions())
    assert score.fad == pytest.approx(frechet_distance(Gaussian.of_rows(BASE), Gaussian.of_rows(OTHER)), abs=1e-9)
    assert score.interval is not None
    assert score.interval[0] < score.fad < score.interval[1]
    low, high = score.interval
    assert score.metrics() == {"fad": score.fad, "fad_low": low, "fad_high": high, "fad_paired_clips": 0}
    everything = measure(base, run, FadOptions(limit="subsets", kad="reference", per_clip=True))
    assert everything.interval == score.interval  # what is drawn is drawn again, whatever else is asked for


def test_each_clip_has_its_own_distance_but_those_of_one_example(base: Reference, run: EmbeddingSet) -> None:
    score = measure(base, run, FadOptions(interval=0, per_clip=True))
    assert (len(score.clips), score.left_out) == (len(CLIP_EXAMPLES) - 1, 1)
    assert [clip.fad for clip in score.clips] == sorted(clip.fad for clip in score.clips)
    long = next(clip for clip in score.clips if clip.clip == "other3.wav")  # over several row groups
    first = sum(CLIP_EXAMPLES[:3])
    own = Gaussian.of_rows(OTHER[first : first + CLIP_EXAMPLES[3]])
    assert (long.examples, long.fad) == (CLIP_EXAMPLES[3], pytest.approx(frechet_distance(base.gaussian, own)))


def test_limit_and_kernel_distance_are_of_the_runs_embeddings(base: Reference, run: EmbeddingSet) -> None:
    score = measure(base, run, FadOptions(interval=0, limit="subsets", kad="reference"))
    rng = np.random.default_rng(0)
    assert score.limit == frechet_limit(base.gaussian, OTHER, rng)
    assert score.kad == pytest.approx(kernel_distance(BASE, OTHER, median_distance(BASE)), rel=1e-9)
    by_kadtk = measure(base, run, FadOptions(interval=0, kad="kadtk"))
    assert by_kadtk.kad == pytest.approx(kernel_distance(BASE, OTHER, median_distance(OTHER)), rel=1e-9)


def test_only_some_rows_of_large_sets_are_drawn(
    base: Reference, run: EmbeddingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.evaluation.fad.LIMIT_ROWS", 150)
    limit = measure(base, run, FadOptions(interval=0, limit="subsets")).limit
    assert limit is not None
    assert limit.points[-1][0] == 150


@pytest.mark.parametrize("groups", [GROUPS, 3])
def test_a_clip_is_drawn_with_all_its_examples(
    groups: int, base: Reference, run: EmbeddingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[EmbeddingStatistics] = []
    monkeypatch.setattr("runner.evaluation.scan.GROUPS", groups)
    monkeypatch.setattr(
        "runner.evaluation.fad.bootstrap_interval", lambda base, groups, rng, resamples: drawn.extend(groups)
    )
    measure(base, run, FadOptions())
    clips = np.split(OTHER, np.cumsum(CLIP_EXAMPLES)[:-1])
    for number, group in enumerate(drawn):
        expected = EmbeddingStatistics.of(np.concatenate(clips[number::groups]))
        assert group.n == expected.n
        np.testing.assert_allclose(group.products, expected.products, rtol=1e-9)
    assert len(drawn) == min(groups, len(CLIP_EXAMPLES))


@pytest.mark.slow
def test_the_same_clips_are_drawn_in_pairs_so_that_the_interval_is_of_the_setting(
    base: Reference, run: EmbeddingSet, tmp_path: Path
) -> None:
    rounded = BASE * (1 + np.random.default_rng(5).standard_normal(BASE.shape) / 2**9).astype(np.float32)
    score = measure(base, one(tmp_path / "rounded", rounded, shards=2), FadOptions(interval=50))
    assert score.paired == len(CLIP_EXAMPLES)
    assert score.interval is not None
    low, high = score.interval
    assert low < score.fad < high < 0.01
    of_other_clips = measure(base, one(tmp_path / "other", rounded, clip="other"), FadOptions())
    assert of_other_clips.fad == score.fad
    assert of_other_clips.interval is not None
    assert of_other_clips.interval[1] > 1000 * high
    same = measure(base, base.embeddings, FadOptions(interval=20))
    assert (same.fad, same.interval, same.paired) == (0.0, (0.0, 0.0), len(CLIP_EXAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [GROUPS, 3])
def test_clips_in_another_order_are_drawn_in_the_same_pairs(
    groups: int, base: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.evaluation.scan.GROUPS", groups)
    rounded = BASE * (1 + np.random.default_rng(5).standard_normal(BASE.shape) / 2**9).astype(np.float32)
    in_order = measure(base, one(tmp_path / "ordered", rounded, digest="d"), FadOptions(interval=50))
    others = one(tmp_path / "others", rounded, shards=2, order=(3, 7, 0, 5, 1, 6, 4, 2), digest="e")
    score = measure(base, others, FadOptions(interval=50))
    assert score.paired == in_order.paired == len(CLIP_EXAMPLES)
    assert score.interval == pytest.approx(in_order.interval, rel=0, abs=1e-12)
    assert not score.notes
    same = measure(base, one(tmp_path / "same", BASE, order=range(7, -1, -1)), FadOptions(interval=20))
    assert (same.fad, same.interval) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("rows", "given", "reason"),
    [
        (300, {"clip": "other"}, "its clips are not the reference's"),
        (300, {"counts": (10, 1, 7, 200, 10, 10, 62), "order": range(7)}, "its clips are not the reference's"),
        (300, {"counts": (52, 10, 1, 7, 200, 10, 10, 10)}, "its clips have other numbers of examples"),
        (295, {"counts": (5, 1, 7, 200, 10, 10, 10, 52), "order": (*range(8), 0)}, "several clips have one name"),
        (292, {"counts": (2, 1, 7, 200, 10, 10, 10, 52)}, "it has another number of examples"),
    ],
)
def test_other_clips_are_not_paired_and_the_score_says_why(
    rows: int, given: dict[str, Any], reason: str, base: Reference, tmp_path: Path
) -> None:
    run = one(tmp_path / "run", BASE[:rows], **given)
    score = measure(base, run, FadOptions(interval=20))
    assert score.paired == 0
    (note,) = score.notes
    assert note.startswith(f"{run.name}: interval with the reference fixed, not paired, as {reason}")
    of_statistics = Reference(replace(base.embeddings, blocks=None))
    alone = measure(of_statistics, run, FadOptions(interval=20))
    assert alone.interval == score.interval
    assert alone.notes[0].endswith("base has no embeddings at hand")


def test_other_protocols_and_weights_are_named(base: Reference, run: EmbeddingSet, tmp_path: Path) -> None:
    assert differences(base.embeddings, run) == []
    changed = {**ABOUT, "frontend.hop_s": "0.48", "weights.checksum": "cd" * 32, "precision": "float16"}
    found = differences(base.embeddings, one(tmp_path / "changed", OTHER, changed))
    shown = [line.partition(" for ")[0] for line in found]
    assert shown == ["weights.checksum is " + "ab" * 6, "frontend.hop_s is 0.96"]


def test_a_run_of_before_a_front_end_key_is_as_one_with_its_default(base: Reference, run: EmbeddingSet) -> None:
    with_key = replace(run, summary=replace(run.summary, about={**ABOUT, "frontend.tail": "drop"}))
    assert differences(base.embeddings, with_key) == []
    other = replace(run, summary=replace(run.summary, about={**ABOUT, "frontend.tail": "pad"}))
    assert len(differences(base.embeddings, other)) == 1


def test_another_tools_statistics_differ_from_none_and_the_score_says_so(base: Reference, run: EmbeddingSet) -> None:
    foreign = replace(run, summary=replace(run.summary, about={}), blocks=None)
    assert differences(base.embeddings, foreign) == []
    notes = measure(base, foreign, FadOptions()).notes
    assert "does not say its protocol" in notes[0]
    assert "no interval" in notes[1]
    for options in (FadOptions(limit="subsets"), FadOptions(kad="reference"), FadOptions(per_clip=True)):
        with pytest.raises(RunnerError, match="file of statistics, without the embeddings"):
            measure(base, foreign, options)


def test_embeddings_of_another_size_are_refused(base: Reference, run: EmbeddingSet) -> None:
    small = replace(run, summary=replace(run.summary, mean=np.zeros(3), covariance=np.eye(3)))
    with pytest.raises(RunnerError, match="embeddings of 3 values"):
        measure(base, small, FadOptions())


def test_statistics_that_are_not_of_the_embeddings_are_told(base: Reference, run: EmbeddingSet) -> None:
    with pytest.raises(RunnerError, match="its statistics are of 301"):
        measure(base, replace(run, summary=replace(run.summary, n=301)), FadOptions())


def test_a_score_above_the_limit_fails_and_one_at_it_does_not(base: Reference, run: EmbeddingSet) -> None:
    score = measure(base, run, FadOptions(interval=0))
    assert failures([score], score.fad) == []
    assert len(failures([score, score], score.fad - 1e-9)) == 2
