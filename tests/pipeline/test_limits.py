"""How many clips a run may skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.schema import FolderDataset
from runner.contract.spec import DatasetSummary
from runner.core.errors import SkippedError
from runner.output.rows import ClipRow
from runner.pipeline.skip_limit import SkipLimit

SKIPPED = ClipRow("a.wav", "skipped", "empty", "0 bytes", 0, 0.0, None, None, False, None, 0.0, ())


@pytest.mark.parametrize("most", [2.0, 0.2])
def test_as_many_clips_may_be_skipped_as_is_allowed_and_no_more(tmp_path: Path, most: float) -> None:
    (tmp_path / "a.wav").touch()
    limit = SkipLimit(FolderDataset(max_skipped=most), DatasetSummary(str(tmp_path), "ten clips", 10), skipped=1)
    limit(SKIPPED)
    with pytest.raises(SkippedError, match=f"3 clips can't be embedded, and dataset.max_skipped={most:g}"):
        limit(SKIPPED)
