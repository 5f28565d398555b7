"""Manifests from folders: which files are clips, in which order, under which names; links; the demo clips."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config.schema import DatasetConfig, FolderDataset
from runner.core.errors import DatasetError
from runner.dataset.clip_names import display_name
from runner.dataset.manifest import build_manifest
from runner.dataset.table import SCHEMA
from tests.dataset.manifests import clips_of, list_folder, put_files


def test_a_folder_gives_its_sounds_in_one_order_with_labels_and_sizes(root: Path) -> None:
    put_files(root, "top.wav", "dog/b.WAV", "dog/a.flac", "cat/deep/c.wav", "dog/Z.wav")
    manifest = list_folder(root)

    assert manifest.table.schema == SCHEMA
    assert clips_of(manifest) == ["cat/deep/c.wav", "dog/Z.wav", "dog/a.flac", "dog/b.WAV", "top.wav"]
    assert manifest.table["label"].to_pylist() == ["deep", "dog", "dog", "dog", None]
    assert manifest.table["bytes"].to_pylist() == [5] * 5
    assert manifest.table["start"].null_count == manifest.table["end"].null_count == 5
    assert [os.fsdecode(path) for path in manifest.table["path"].to_pylist()] == [
        str(root.resolve() / clip) for clip in clips_of(manifest)
    ]
    assert manifest.description == f"5 clips in {root.resolve()}"
    assert not manifest.is_demo


def test_what_is_left_out_is_counted_by_why(root: Path) -> None:
    put_files(root, "a.wav", "a.txt", "b.TXT", "README", "other/b.wav", ".hidden")
    manifest = list_folder(root, pattern="a*", label_from="none")

    assert clips_of(manifest) == ["a.wav"]
    assert manifest.ignored == {".txt": 2, "(no extension)": 2, "(not in dataset.pattern)": 1}
    assert manifest.table["label"].to_pylist() == [None]


def test_a_pattern_crosses_folders(root: Path) -> None:
    put_files(root, "x/train/a.wav", "x/test/b.wav", "train/c.wav")

    assert clips_of(list_folder(root, pattern="*train/*")) == ["train/c.wav", "x/train/a.wav"]


def test_a_folder_without_clips_is_an_error_that_says_what_was_looked_for_and_what_is_there(root: Path) -> None:
    put_files(root, "a.txt", "b.txt", "c.pdf")

    with pytest.raises(DatasetError, match=r"data holds no clips \(looked for \.flac, \.wav; found 2 \.txt, 1 \.pdf\)"):
        list_folder(root)


def test_an_empty_folder_is_an_error(root: Path) -> None:
    with pytest.raises(DatasetError, match="found no files at all"):
        list_folder(root)


def test_a_subfolder_that_cannot_be_listed_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_files(root, "a.wav", "closed/b.wav")
    listed = os.scandir

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    manifest = list_folder(root)

    assert clips_of(manifest) == ["a.wav"]
    assert manifest.ignored == {"(folder that can't be listed)": 1}


def test_links_to_folders_are_followed_and_loops_end(root: Path, tmp_path: Path) -> None:
    put_files(root, "a/one.wav")
    put_files(tmp_path / "elsewhere", "two.wav")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)

    assert clips_of(list_folder(root)) == ["a/one.wav", "linked/two.wav"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_what_only_decoding_can_refuse_stays_in(root: Path) -> None:
    put_files(root, "good.wav")
    os.mkfifo(root / "pipe.wav")
    (root / "gone.wav").symlink_to(root / "nowhere")
    (root / "self.wav").symlink_to(root / "self.wav")
    sizes = dict(zip(clips_of(manifest := list_folder(root)), manifest.table["bytes"].to_pylist(), strict=True))

    assert sizes == {"good.wav": 5, "pipe.wav": 0, "gone.wav": -1, "self.wav": -1}


@pytest.mark.skipif(os.name != "posix", reason="file names are not bytes on this system")
def test_names_that_are_not_text_are_shown_escaped_and_still_lead_to_the_file(root: Path) -> None:
    for name in (b"\xff\xfe.wav", "äöü 日本.wav".encode(), b"line\nbreak.wav"):
        try:
            Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"sound")
        except OSError:
            pytest.skip("this file system takes only text for names")
    manifest = list_folder(root)

    assert clips_of(manifest) == ["line\nbreak.wav", "äöü 日本.wav", r"\xff\xfe.wav"]
    assert all(Path(os.fsdecode(path)).read_bytes() == b"sound" for path in manifest.table["path"].to_pylist())


def test_real_and_hostile_audio_is_listed_whole(audio: Path) -> None:
    hostile = audio / "hostile"
    every_extension = sorted({path.suffix for path in hostile.iterdir()} - {""})
    manifest = list_folder(hostile, extensions=every_extension)

    assert set(clips_of(manifest)) == {path.name for path in hostile.iterdir()}
    assert manifest.ignored == {}


@pytest.fixture(scope="module")
def demo_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for outputs, in which the demo clips are synthesized when asked for."""
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [DatasetConfig(), FolderDataset(extensions=["wav"])], ids=["demo", "no root"])
def test_no_data_of_ones_own_means_the_demo_clips(demo_outputs: Path, dataset: DatasetConfig) -> None:
    manifest = build_manifest(dataset, demo_outputs)

    assert manifest.is_demo
    assert manifest.root == str(demo_outputs / "demo")
    assert manifest.description == f"40 demo clips in {demo_outputs / 'demo'}"
    assert manifest.ignored == {}
    assert set(manifest.table["label"].to_pylist()) > {"tone", "noise"}


def test_clips_come_in_the_order_of_their_paths_bytes_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "a.wav",
        "a/b.wav",
        "a-b.wav",
        "a/b/c.wav",
        "a0.wav",
        "ä.wav",
        "z/ä/1.wav",
        "z.d/x.wav",
        "Z.wav",
        "a/b-.wav",
    ]
    put_files(tmp_path, *names)
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"sound")
    whole = list_folder(tmp_path)
    paths = whole.table["path"].to_pylist()
    assert paths == sorted(paths)
    assert len(paths) == len(names) + 1
    monkeypatch.setattr("runner.dataset.table.CHUNK_CLIPS", 3)
    monkeypatch.setattr("runner.dataset.folder.CHUNK_CLIPS", 3)
    chunked = list_folder(tmp_path)
    assert chunked.table["clip"].num_chunks == 4
    assert chunked.table.equals(whole.table)
    assert chunked.digest == whole.digest


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([b"\\", b"x", b"5c", b"ff", b"\xff", b"\xc3", b"\xa9"]), max_size=6)))
def test_different_names_are_shown_differently(names: list[list[bytes]]) -> None:
    different = {b"".join(name) for name in names}
    assert len({display_name(name) for name in different}) == len(different)


def test_a_name_of_bytes_and_one_that_reads_like_it_are_two_clips(root: Path) -> None:
    put_files(root, os.fsdecode(b"\xff.wav"), r"\xff.wav", r"a\b.wav")
    assert set(clips_of(list_folder(root))) == {r"\xff.wav", r"\x5cxff.wav", r"a\b.wav"}


def test_cross_linked_folders_add_their_files_once_a_link(root: Path) -> None:
    names = "abcdefg"
    put_files(root, *(f"{name}/{name}.wav" for name in names))
    for name, other in itertools.permutations(names, 2):
        (root / name / other).symlink_to(root / other)
    manifest = list_folder(root)
    assert clips_of(manifest) == sorted(
        [f"{name}/{name}.wav" for name in names]
        + [f"{name}/{other}/{other}.wav" for name, other in itertools.permutations(names, 2)]
    )
    assert manifest.ignored == {"(link to a folder that is listed already)": 42 * 6}


def test_links_below_links_lead_out_of_the_data_set_and_to_each_folder_once(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    put_files(outside, "one/1.wav", "two/2.wav", "two/deep/3.wav")
    (outside / "one" / "two").symlink_to(outside / "two")
    (outside / "two" / "one").symlink_to(outside / "one")
    (root / "train").symlink_to(outside / "one")
    (root / "test").symlink_to(outside / "one")
    below = ["1.wav", "two/2.wav", "two/deep/3.wav"]
    assert clips_of(list_folder(root)) == [f"{link}/{name}" for link in ("test", "train") for name in below]
