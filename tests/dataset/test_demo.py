"""The demo clips: what a first run embeds, with no data and no network."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.core.errors import DatasetError
from runner.dataset import demo
from runner.dataset.demo import demo_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_clips(tmp_path_factory.mktemp("outputs"))


def _sounds(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.is_file() and not path.name.startswith("."))


def _make_only_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_synthesize", lambda folder: (folder / "tone.wav").write_text("new"))


def test_all_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    fsync, replace = os.fsync, Path.replace

    def noting(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checking(building: Path, folder: Path) -> Path:
        assert {path.stat().st_ino for path in (building, *building.rglob("*"))} <= flushed
        return replace(building, folder)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "replace", checking)
    _make_only_names(monkeypatch)
    folder = demo_clips(tmp_path / "outputs")
    assert folder.stat().st_ino in flushed
    assert folder.parent.stat().st_ino in flushed


@pytest.mark.slow
def test_there_are_about_forty_labelled_clips_in_every_common_format(clips: Path) -> None:
    sounds = _sounds(clips)
    about = [soundfile.info(path) for path in sounds]

    assert len(sounds) == 40
    assert set(Counter(path.parent.name for path in sounds).values()) == {5}
    assert {(path.suffix, info.subtype) for path, info in zip(sounds, about, strict=True)} == {
        (".wav", "PCM_16"),
        (".wav", "PCM_24"),
        (".wav", "FLOAT"),
        (".flac", "PCM_16"),
        (".ogg", "VORBIS"),
        (".mp3", "MPEG_LAYER_III"),
    }
    assert {info.samplerate for info in about} >= {8_000, 16_000, 44_100, 48_000}
    assert {info.channels for info in about} == {1, 2}
    assert all(2.9 < info.duration < 20.1 for info in about)


@pytest.mark.slow
def test_every_clip_sounds_at_one_level(clips: Path) -> None:
    for path in _sounds(clips):
        samples, _ = soundfile.read(path)
        assert np.isfinite(samples).all(), path
        assert np.sqrt(np.mean(samples**2)) > 0.01, path
        if path.suffix in (".wav", ".flac"):  # a lossy format overshoots what was written
            assert np.abs(samples).max() == pytest.approx(0.6, abs=1e-3), path


@pytest.mark.slow
def test_a_second_synthesis_gives_the_same_sound(clips: Path, tmp_path: Path) -> None:
    again = demo_clips(tmp_path)

    assert [path.relative_to(again) for path in _sounds(again)] == [path.relative_to(clips) for path in _sounds(clips)]
    for one, other in zip(_sounds(clips), _sounds(again), strict=True):
        np.testing.assert_array_equal(soundfile.read(one)[0], soundfile.read(other)[0], err_msg=str(one))


def test_clips_that_are_there_are_left_alone(clips: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in _sounds(clips)}

    assert demo_clips(clips.parent) == clips
    assert {path: path.stat().st_mtime_ns for path in _sounds(clips)} == before


def test_another_recipe_makes_the_clips_anew_and_leaves_nothing_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_only_names(monkeypatch)
    folder = demo_clips(tmp_path)
    (folder / "old.wav").touch()

    monkeypatch.setattr(demo, "RECIPE", "next")
    demo_clips(tmp_path)

    assert _sounds(folder) == [folder / "tone.wav"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["demo"]


def test_what_a_killed_process_left_behind_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path) -> None:
        (folder / "half.wav").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_synthesize", killed)
    with pytest.raises(KeyboardInterrupt):
        demo_clips(tmp_path)
    assert not (tmp_path / "demo").exists()

    _make_only_names(monkeypatch)
    folder = demo_clips(tmp_path)

    assert _sounds(folder) == [folder / "tone.wav"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["demo"]


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    own = tmp_path / "demo" / "result.json"
    own.parent.mkdir()
    own.write_text("mine")

    with pytest.raises(DatasetError, match=r"demo, the folder of the demo clips, holds other files.*paths\.outputs"):
        demo_clips(tmp_path)
    assert own.read_text() == "mine"


def _write_slowly(folder: Path) -> None:
    for number in range(40):
        (folder / f"{number}.wav").write_text("new")
        time.sleep(0.005)


def _demo_in_process(outputs: Path, ready: multiprocessing.synchronize.Barrier) -> None:
    ready.wait()
    assert [path.read_text() for path in _sounds(demo_clips(outputs))] == ["new"] * 40


@pytest.mark.parametrize("stale", [False, True], ids=["first use", "outdated clips"])
def test_processes_that_start_together_all_get_whole_clips(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    if stale:
        shutil.copytree(clips, tmp_path / "demo")
        (tmp_path / "demo" / ".recipe").write_text("outdated")
    monkeypatch.setattr(demo, "_synthesize", _write_slowly)
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    processes = [context.Process(target=_demo_in_process, args=(tmp_path, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["demo"]
