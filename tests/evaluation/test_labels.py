"""Which recording of a run a name in a label file means, and which windows an annotation is a label of."""

from __future__ import annotations

import numpy as np
import pytest

from runner.config.groups.evaluate import EvaluateConfig
from runner.core.errors import EvaluationError
from runner.evaluation.annotations import Annotation, Annotations
from runner.evaluation.labels import FileLabels, RunLabels, recording_of

STARTS = np.array([0.0, 0.96, 1.92])


def labels_of(*rows: Annotation, **config: object) -> FileLabels:
    annotations = Annotations(list(rows), [row.recording for row in rows])
    return FileLabels(annotations, EvaluateConfig(labels="labels", **config))


def windows(labels: FileLabels, clip: str = "a.wav", starts: np.ndarray = STARTS) -> list[set[str]] | None:
    found = labels.of(clip, None, starts, 0.96)
    return None if found is None else [set(each) for each in found.windows]


def test_an_annotation_is_the_label_of_windows_that_it_overlaps_by_the_least_time() -> None:
    labels = labels_of(Annotation("a.wav", "wren", 0.9, 1.0), Annotation("a.wav", "robin", 1.7, 2.1))
    assert windows(labels) == [set(), {"robin"}, {"robin"}]
    assert windows(labels_of(Annotation("a.wav", "wren", 0.8, 1.2))) == [{"wren"}, {"wren"}, set()]
    assert windows(labels_of(Annotation("a.wav", "wren", 0.8, 1.2), min_overlap_s=0.2)) == [set(), {"wren"}, set()]


def test_an_annotation_shorter_than_that_counts_where_it_lies_whole() -> None:
    point, short = Annotation("a.wav", "click", 1.0, 1.0), Annotation("a.wav", "call", 2.0, 2.05)
    assert windows(labels_of(point, short)) == [set(), {"click"}, {"call"}]


def test_overlapping_windows_of_a_long_recording_are_those_of_the_plain_rule() -> None:
    rng = np.random.default_rng(0)
    starts = np.arange(0, 100, 0.24)
    rows = [Annotation("a.wav", str(number % 5), start, start + rng.exponential(0.5))
            for number, start in enumerate(rng.uniform(0, 100, 200))]  # fmt: skip
    expected = [
        {row.label for row in rows
         if min(start + 0.96, row.end_s) - max(start, row.start_s) >= min(0.1, row.end_s - row.start_s)}
        for start in starts
    ]  # fmt: skip
    assert windows(labels_of(*rows), starts=starts) == expected


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("a.wav", "a.wav"),
        ("a", "site/a.wav"),
        ("site/a", "data/site/a.wav"),
        ("/mnt/x/data/site/a.wav", "site/a.wav"),
        ("D:\\data\\site\\a.WAV", "site/a.flac"),
        ("a.wav", "a.wav#t=1.5,4"),
        ("2024.05.01", "2024.05.01.wav"),
    ],
)
def test_a_name_means_the_recording_whose_path_ends_alike(name: str, clip: str) -> None:
    assert windows(labels_of(Annotation(name, "wren")), clip=clip) == [{"wren"}] * 3


@pytest.mark.parametrize(
    ("name", "clip"), [("x/a.wav", "y/a.wav"), ("a.wav", "aa.wav"), ("2024.05.01", "2024.05.wav"), ("a/b", "b/a.wav")]
)
def test_a_name_means_no_other_recording(name: str, clip: str) -> None:
    assert windows(labels_of(Annotation(name, "wren")), clip=clip) is None


def test_the_longest_common_end_decides_and_a_suffix_between_equals() -> None:
    labels = labels_of(Annotation("x/a.wav", "wren"), Annotation("y/a.wav", "robin"))
    assert windows(labels, "x/a.wav") == [{"wren"}] * 3
    assert windows(labels, "y/a.wav") == [{"robin"}] * 3
    labels = labels_of(Annotation("a.wav", "wren"), Annotation("a.flac", "robin"))
    assert windows(labels, "a.flac") == [{"robin"}] * 3


def test_a_name_that_may_be_two_recordings_is_refused() -> None:
    labels = labels_of(Annotation("a.wav", "wren"))
    windows(labels, "x/a.wav")
    with pytest.raises(EvaluationError, match=r"a\.wav of the labels may be x/a\.wav or y/a\.wav"):
        windows(labels, "y/a.wav")
    with pytest.raises(EvaluationError, match=r"x/a\.ogg may be"):
        windows(labels_of(Annotation("x/a.wav", "wren"), Annotation("x/a.flac", "robin")), "x/a.ogg")


def test_rows_of_one_file_share_its_recording_and_names_that_look_like_it_do_not() -> None:
    assert recording_of("d/a.wav#t=0,2.5") == recording_of("d/a.wav#t=,1e-05") == "d/a.wav"
    assert recording_of("d/a#t=1.wav") == "d/a#t=1.wav"


def test_a_pattern_takes_the_group_out_of_the_name() -> None:
    labels = RunLabels(r"/\d-(\d+)-")
    groups = {labels.of(f"dog/1-30344-{take}.ogg", "dog", STARTS, 0.96).group for take in "AB"}
    assert groups == {"30344"}
    with pytest.raises(EvaluationError, match="does not match cat/x"):
        labels.of("cat/x.ogg", "cat", STARTS, 0.96)
    with pytest.raises(EvaluationError, match="is no regular expression"):
        RunLabels("(")
    with pytest.raises(EvaluationError, match="has no group"):
        RunLabels("a.b")


def test_columns_give_a_recordings_fold_and_group_and_must_agree() -> None:
    labels = labels_of(
        Annotation("a.wav", "wren", 0, 1, "3", "site 1"), Annotation("a.wav", "robin", 1, 2, "3", "site 1")
    )
    found = labels.of("a.wav", None, STARTS, 0.96)
    assert found is not None
    assert (found.fold, found.group) == ("3", "site 1")
    with pytest.raises(EvaluationError, match="several values of the column of its fold"):
        windows(labels_of(Annotation("a.wav", "wren", fold="1"), Annotation("a.wav", "robin", fold="2")))


def test_labels_that_fit_nothing_are_told() -> None:
    labels = labels_of(Annotation("b.wav", "wren"))
    assert windows(labels, "a.wav") is None
    with pytest.raises(EvaluationError, match=r"names none of the run's recordings \(it names b\.wav\)"):
        labels.check()
    with pytest.raises(EvaluationError, match="no embedded clip has a label"):
        RunLabels().check()
