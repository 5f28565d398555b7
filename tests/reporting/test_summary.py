"""The summary of a run names the clips that were skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from runner.output.rows import ClipRow, clip_table
from runner.reporting.summary import summarize
from tests.results import make_result


def clip_row(clip: str, reason: str | None, detail: str | None) -> ClipRow:
    status = "skipped" if reason else "embedded"
    return ClipRow(clip, status, reason, detail, 0, 0.0, None, None, False, None, 0.0, np.empty((0, 128), np.float32))


def summary(folder: Path, skipped: int) -> list[str]:
    metrics = {"examples": 0.0, "clips_embedded": 0.0, "clips_skipped": 1.0 * skipped, "clips_padded": 0.0}
    result = make_result({"skipped": {"empty": skipped} if skipped else {}, "metrics": metrics})
    return summarize(result, "/run", None, clips=folder / "clips.parquet").splitlines()


def test_the_first_skipped_clips_are_named_with_reason_and_detail(tmp_path: Path) -> None:
    rows = [clip_row("good.wav", None, None)] * 3 + [clip_row(f"{n}.wav", "empty", "0 bytes") for n in range(9)]
    pq.write_table(clip_table(rows), tmp_path / "clips.parquet", row_group_size=2)
    lines = summary(tmp_path, 9)
    first = next(number for number, line in enumerate(lines) if line.startswith("    skipped  9 empty"))
    assert [line.strip() for line in lines[first + 1 : first + 4]] == [f"{n}.wav: empty, 0 bytes" for n in range(3)]
    assert not any(".wav" in line for line in lines[first + 4 :])


def test_a_run_without_skipped_clips_or_without_a_readable_table_names_none(tmp_path: Path) -> None:
    pq.write_table(clip_table([clip_row("good.wav", None, None)]), tmp_path / "clips.parquet")
    assert not any("empty" in line or ".wav" in line for line in summary(tmp_path, 0))
    (tmp_path / "clips.parquet").unlink()
    assert sum("empty" in line for line in summary(tmp_path, 9)) == 1
    (tmp_path / "clips.parquet").write_bytes(b"PAR1")
    assert sum("empty" in line for line in summary(tmp_path, 9)) == 1
