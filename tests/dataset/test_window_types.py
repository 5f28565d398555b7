"""The look at a data set before the device is ready: no file can kill or hang who looks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.audio.preparation import Preparation
from runner.audio.reader import read_clip
from runner.config.groups.frontend import FrontendConfig
from runner.dataset import window_types as looking
from runner.dataset.window_types import is_int16, window_types
from runner.vggish.spec import VGGISH
from tests.vggish_clips import PREPARATION

WAVE = np.zeros(16_000)


def manifest_of(folder: Path, *paths: Path) -> Path:
    pq.write_table(
        pa.table({"path": pa.array(list(map(os.fsencode, paths)), pa.binary())}), folder / "manifest.parquet"
    )
    return folder / "manifest.parquet"


@pytest.mark.parametrize(("settings", "keeps"), [({}, True), ({"speed": 0.1}, False), ({"normalize": "peak"}, False)])
def test_a_front_end_that_scales_or_slows_samples_keeps_no_int16(settings: dict[str, Any], keeps: bool) -> None:
    assert FrontendConfig(**settings).preparation(VGGISH).keeps_int16 is keeps


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "ogg"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", None])
def test_the_head_of_a_file_says_what_its_windows_are(
    tmp_path: Path, suffix: str, rate: int, channels: int, subtype: str | None
) -> None:
    path = tmp_path / f"a.{suffix}"
    if not soundfile.check_format(suffix, subtype):
        return
    soundfile.write(path, np.zeros((rate, channels)), rate, subtype=subtype)
    with read_clip(os.fsencode(path), preparation=PREPARATION) as clip:
        is_integer = next(iter(clip)).dtype == np.int16
    assert is_int16(os.fsencode(path), 16_000) == (is_integer and suffix in ("wav", "flac"))


def test_the_first_clips_type_is_first(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", WAVE, 44_100)
    soundfile.write(tmp_path / "b.wav", WAVE, 16_000)
    both = manifest_of(tmp_path, tmp_path / "a.wav", tmp_path / "b.wav")
    assert window_types(both, PREPARATION) == ("float32", "int16")
    assert window_types(both, Preparation(44_100)) == ("int16", "float32")
    assert window_types(both, Preparation(32_000)) == ("float32",)
    assert window_types(both, replace(PREPARATION, takes_int16=False)) == ("float32",)
    assert window_types(manifest_of(tmp_path, tmp_path / "b.wav", tmp_path / "b.wav"), PREPARATION) == ("int16",)


def test_what_is_no_regular_file_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    started = time.monotonic()
    assert window_types(manifest_of(tmp_path, tmp_path / "a.wav", Path("/dev/zero")), PREPARATION) == ("float32",)
    assert time.monotonic() - started < 1


def test_a_share_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "is_int16", lambda *arguments: time.sleep(30))
    started = time.monotonic()
    assert window_types(manifest_of(tmp_path, tmp_path / "a.wav"), PREPARATION, timeout_s=0.1) == ("float32",)
    assert time.monotonic() - started < 5


def test_no_decoder_is_opened_by_who_looks(tmp_path: Path) -> None:
    """A library that dies on a file, as libsndfile has, must not take the worker with it."""
    (tmp_path / "a.wav").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt and what kills a decoder")
    manifest = manifest_of(tmp_path, tmp_path / "a.wav")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, soundfile\n"
        "soundfile.SoundFile.__init__ = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    code = (
        f"from pathlib import Path; from runner.dataset.window_types import *; "
        "from runner.audio.preparation import Preparation; "
        f"print(window_types(Path({str(manifest)!r}), Preparation(16_000)))"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(looking.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "('float32',)"), done.stderr


def test_a_data_set_of_no_clips_has_a_type(tmp_path: Path) -> None:
    assert window_types(manifest_of(tmp_path), PREPARATION) == ("float32",)
