"""Files that PyAV decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.core.errors import ClipError
from tests.audio.encoded import RATE, av_file, read


@pytest.mark.parametrize(
    ("extension", "codec", "form"),
    [("m4a", "aac", "fltp"), ("aac", "aac", "fltp"), ("tta", "tta", "s16"), ("mka", "aac", "fltp")],
)
def test_what_pyav_decodes_before_a_fault_is_kept(tmp_path: Path, extension: str, codec: str, form: str) -> None:
    data = av_file(tmp_path / f"x.{extension}", codec, form, {"movflags": "faststart"} if extension == "m4a" else None)
    whole, note = read(tmp_path, extension, data)
    assert note is None
    assert len(whole) >= 8 * RATE
    for broken in (data[: len(data) * 6 // 10], data[: len(data) // 2] + b"\x55" * 3000 + data[len(data) // 2 :]):
        frames, note = read(tmp_path, extension, broken)
        assert note is not None
        assert note.startswith("truncated: ")
        assert len(frames) > 0.35 * len(whole)
        assert np.array_equal(frames[: 2 * RATE], whole[: 2 * RATE])


def test_an_m4a_file_whose_table_of_contents_is_cut_off_is_refused(tmp_path: Path) -> None:
    data = av_file(tmp_path / "x.m4a", "aac", "fltp")
    with pytest.raises(ClipError) as refused:
        read(tmp_path, "m4a", data[: len(data) // 2])
    assert refused.value.reason == "unsupported_format"
