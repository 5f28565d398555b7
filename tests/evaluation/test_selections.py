"""Tables for annotation programs."""

from __future__ import annotations

from pathlib import Path

from runner.evaluation.selections import Selection, audacity_tracks, csv_table, raven_table, text_table, write_audacity

SELECTIONS = [
    Selection("birds/b.wav", 61.44, 62.415, "robin", 0.9731),
    Selection("a.wav", 4.8, 5.775, "", 0.5),
    Selection("birds/b.wav", 0.0, 0.975, "two\twords\n"),
]


def test_a_raven_table_names_each_file_and_the_offset_in_it() -> None:
    header, first, second, third = (
        line.split("\t") for line in raven_table([*SELECTIONS[:2], SELECTIONS[0]], "/data").splitlines()
    )
    row = dict(zip(header, first, strict=True))
    assert row["Selection"] == "1"
    assert (row["Begin Time (s)"], row["End Time (s)"], row["File Offset (s)"]) == ("61.440", "62.415", "61.440")
    assert (row["Begin Path"], row["Label"], row["Score"]) == ("/data/birds/b.wav", "robin", "0.9731")
    assert second[header.index("Begin Path")] == "/data/a.wav"
    assert third[0] == "3"


def test_an_audacity_track_is_of_one_clip_in_order_of_time(tmp_path: Path) -> None:
    tracks = audacity_tracks(SELECTIONS)
    assert tracks["birds/b.wav"] == "0.000000\t0.975000\ttwo words \n61.440000\t62.415000\trobin 0.973\n"
    assert write_audacity(SELECTIONS, tmp_path) == [tmp_path / "birds" / "b.wav.txt", tmp_path / "a.wav.txt"]
    assert (tmp_path / "a.wav.txt").read_text() == "4.800000\t5.775000\t0.500\n"


def test_csv_and_text_have_a_row_a_selection() -> None:
    assert csv_table(SELECTIONS[:1]).splitlines()[1] == "0.973100,birds/b.wav,61.440,62.415,robin"
    assert "01:01.44" in text_table(SELECTIONS[:1])
    assert "1:01:01.50" in text_table([Selection("long.wav", 3661.5, 3662.475)])
