"""Other programs' layouts: npy files, timelines, YouTube-8M."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.cli import export
from runner.converters.npy import export_npy, npy_path
from runner.converters.timelines import export_timelines, stretches
from runner.core.errors import RunnerError
from runner.dataset.clip_names import split_range
from runner.output.reader import EmbeddingReader
from tests.evaluation.test_search import write_run


def test_each_clip_is_an_npy_file_at_its_own_path(run: EmbeddingReader, embeddings: np.ndarray, tmp_path: Path) -> None:
    assert export_npy(run, tmp_path / "npy") == 8
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / "c" / "20230112_053000_vggish.npy"), embeddings[10:15])


@pytest.mark.parametrize(
    ("clip", "path"),
    [
        ("a.wav", "a_vggish.npy"),
        ("x/a.b.wav#t=2.5,5", "x/a.b_2.5-5_vggish.npy"),
        ("a.wav#t=,5", "a_-5_vggish.npy"),
        ("noise", "noise_vggish.npy"),
    ],
)
def test_an_npy_file_is_named_by_stem_and_stretch(clip: str, path: str) -> None:
    assert npy_path(clip, "vggish") == Path(path)


@pytest.mark.parametrize("clip", ["../up.wav", "/etc/passwd.wav", "x/../../up.wav"])
def test_no_npy_file_is_outside_of_the_folder(clip: str, tmp_path: Path) -> None:
    assert (tmp_path / npy_path(clip, "vggish")).resolve().is_relative_to(tmp_path)


def test_two_clips_of_one_stem_are_an_error(embeddings: np.ndarray, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "two", embeddings[:2], ["a.flac", "a.wav"])
    with pytest.raises(RunnerError, match=r"a\.flac and a\.wav would both be"):
        export_npy(EmbeddingReader(str(folder)), tmp_path / "npy")


@pytest.mark.parametrize(
    ("clip", "parts"),
    [
        ("a.wav", ("a.wav", None, None)),
        ("a.wav#t=1.5,2", ("a.wav", 1.5, 2.0)),
        ("a.wav#t=,2", ("a.wav", None, 2.0)),
        ("a.wav#t=1e-05,", ("a.wav", 1e-05, None)),
        ("a#t=x,y", ("a#t=x,y", None, None)),
    ],
)
def test_a_clip_name_says_its_stretch(clip: str, parts: tuple[str, float | None, float | None]) -> None:
    assert split_range(clip) == parts


def test_consecutive_examples_of_a_label_are_one_stretch() -> None:
    starts = 0.96 * np.arange(5)
    selections = stretches("a.wav", starts, ["dog", "dog", None, "dog", "cat"], 0.975)
    assert [(item.label, round(item.start_s, 3), round(item.end_s, 3)) for item in selections] == [
        ("dog", 0.0, 1.935),
        ("dog", 2.88, 3.855),
        ("cat", 3.84, 4.815),
    ]


def test_timelines_have_the_clips_labels(run: EmbeddingReader, tmp_path: Path) -> None:
    assert export_timelines(run, tmp_path / "raven", "raven") == 8
    _, row = (tmp_path / "raven" / "b" / "20230111_053000.wav.selections.txt").read_text().splitlines()
    assert row.split("\t")[3:5] == ["0.000", "4.815"]
    assert "/data/clips/b/20230111_053000.wav" in row
    assert export_timelines(run, tmp_path / "audacity", "audacity") == 8
    assert (tmp_path / "audacity" / "b" / "20230111_053000.wav.txt").read_text() == "0.000000\t4.815000\tb\n"


@pytest.mark.slow
def test_timelines_have_clusters_of_the_sounds(tmp_path: Path) -> None:
    sounds = np.repeat(np.eye(2, 128, dtype=np.float32), 3, axis=0) + np.float32(0.01)
    folder = write_run(tmp_path / "run", sounds, ["long.wav"] * 6)
    export_timelines(EmbeddingReader(str(folder)), tmp_path / "tracks", "audacity", labels=2)
    first, second = (line.split("\t") for line in (tmp_path / "tracks" / "long.wav.txt").read_text().splitlines())
    assert (float(first[1]), float(second[0])) == pytest.approx((2 * 0.96 + 0.975, 3 * 0.96))
    assert {first[2], second[2]} == {"cluster 1", "cluster 2"}


def test_more_clusters_than_examples_are_an_error(run: EmbeddingReader, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="--clusters 41 are more than the 40 examples"):
        export_timelines(run, tmp_path / "x", "audacity", labels=41)


def test_a_run_without_8_bit_embeddings_is_no_youtube8m(
    run: EmbeddingReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["youtube8m", run.location, str(tmp_path / "y")]) == 1
    assert "output.postprocess=audioset" in capsys.readouterr().err


def test_the_command_says_what_it_wrote(
    run: EmbeddingReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["npy", run.location, str(tmp_path / "npy")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'npy'}: 8 files *_vggish.npy\n"
    assert export.main(["npy", run.location, str(tmp_path / "npy"), "--clusters", "2"]) == 1
    assert "--clusters is for raven and audacity" in capsys.readouterr().err
