"""The class map: names in the order of the scores, and tables that are not one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from runner.core.errors import WeightsError
from runner.yamnet.class_map import read_classes

HEADER = ["index", "mid", "display_name"]


def rows() -> list[list[str]]:
    return [[str(number), f"/m/{number:04d}", f'Sound {number}, "loud"'] for number in range(521)]


def write(path: Path, table: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)
    return path


def test_names_are_read_in_the_order_of_the_scores(tmp_path: Path) -> None:
    classes = read_classes(write(tmp_path / "map.csv", [HEADER, *rows()]))
    assert (len(classes), classes[0], classes[520]) == (521, 'Sound 0, "loud"', 'Sound 520, "loud"')


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "its columns are '', not index,mid,display_name"),
        ([["mid", "display_name"], *rows()], "its columns are 'mid,display_name'"),
        ([HEADER, *rows()[:520]], "it has 520 classes, not 521"),
        (
            [HEADER, *rows()[:4], ["5", "/m/x", "Bark"], *rows()[5:]],
            "line 6 is '5,/m/x,Bark', not the class with index 4",
        ),
        ([HEADER, *rows()[:520], ["520", "/m/x"]], "line 522 is '520,/m/x', not the class"),
        ([HEADER, ["0", "/m/x", ""], *rows()[1:]], "line 2 is '0,/m/x,', not the class"),
        ([HEADER, ["0", "/m/0001", "Bark"], *rows()[1:]], "it has a class twice"),
    ],
)
def test_another_table_is_refused(table: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"is not YAMNet's class map: {message}.*; give the release's"):
        read_classes(write(tmp_path / "map.csv", table))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'index,mid,display_name\n0,/m/1,"Bark', None])
def test_a_file_that_is_no_table_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "map.csv").write_bytes(content)
    with pytest.raises(WeightsError, match=r"map.csv can't be read \(.*\): give YAMNet's yamnet_class_map.csv"):
        read_classes(tmp_path / "map.csv")
