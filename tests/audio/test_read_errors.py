"""Read errors of the operating system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile

from runner.audio import flac
from runner.audio.reader import read_clip
from runner.core.errors import ClipError
from tests.audio.encoded import RATE, av_file, signal, without_xing
from tests.vggish_clips import PREPARATION


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["plain.wav", "x.wav", "x.flac", "x.ogg", "x.mp3", "stream.mp3", "x.aiff", "x.tta"])
def test_a_read_error_of_the_system_is_no_truncation(
    files: dict[str, bytes], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flac, "_miniaudio", lambda: None)  # which reads a file whole, before its first block
    path = tmp_path / kind
    extension = kind.partition(".")[2]
    if kind == "stream.mp3":
        path.write_bytes(without_xing(files["mp3"]))
    elif kind == "x.tta":
        av_file(path, "tta", "s16")
    elif extension in files:
        path.write_bytes(files[extension])
    else:
        soundfile.write(path, signal(25), 16_000 if kind == "plain.wav" else RATE)
    with read_clip(str(path), preparation=PREPARATION) as clip:
        blocks = iter(clip)
        if kind != "stream.mp3":  # of which a block is all
            next(blocks)
        break_reading(path)
        with pytest.raises(ClipError) as refused:
            list(blocks)
    assert refused.value.reason == "unreadable"


def break_reading(path: Path) -> None:
    """Have the system refuse to read on where this process has a file open: as it does a folder."""
    folder = os.open("/", os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{name}"
        if os.path.lexists(link) and os.readlink(link) == str(path):
            os.dup2(folder, int(name))
    os.close(folder)
