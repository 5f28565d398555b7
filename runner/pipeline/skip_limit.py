"""How many clips a run may skip before it is stopped, and a data set that is gone altogether."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from runner.core.errors import DatasetError, DiskFullError, SkippedError
from runner.core.paths import is_url
from runner.dataset.listing import walk_store
from runner.storage.retry import is_denied

if TYPE_CHECKING:
    from runner.config.schema import DatasetConfig
    from runner.contract.spec import DatasetSummary
    from runner.output.rows import ClipRow

_LOOK_EVERY_S = 10.0
"""How often a store is listed at most, while clips are skipped: who asks is the thread that collects rows."""


class SkipLimit:
    """Ends a run that skips more clips than it may, or whose data set is gone.

    Args:
        dataset: what the configuration allows.
        described: the data set.
        skipped: clips skipped before.
    """

    def __init__(self, dataset: DatasetConfig, described: DatasetSummary, skipped: int) -> None:
        self._fail = dataset.on_error == "fail"
        most = dataset.max_skipped
        self._most = None if most is None else int(most if most >= 1 else most * described.clips)
        self._given = most
        self._root = described.root
        self._timeout_s = dataset.download_timeout_s
        self._skipped = skipped
        self._look_after = 0.0

    def __call__(self, row: ClipRow) -> None:
        """Take note of a clip that is skipped.

        Raises:
            SkippedError: it is one too many.
            DatasetError: it is missing because the whole data set is.
            DiskFullError: there was no room to fetch it.
        """
        self._skipped += 1
        again = "rerun the same command to resume"
        if row.reason == "disk_full":
            raise DiskFullError(
                f"the temporary folder is full ({row.clip}: {row.detail}): make room there, name another one in "
                f"TMPDIR, or lower dataset.prefetch, and {again}"
            )
        if row.reason in ("missing", "unreadable", "download_timeout") and self._is_gone():
            if is_url(self._root):
                raise DatasetError(
                    f"dataset.root={self._root} can't be reached any more, or is empty ({row.clip}: {row.detail}): "
                    f"see to network, endpoint and credentials, and {again}"
                )
            raise DatasetError(
                f"dataset.root={self._root} is gone, or empty (a drive or share that is no longer there?): "
                f"bring it back, and {again}"
            )
        if self._fail:
            raise SkippedError(
                f"{row.clip} can't be embedded ({row.reason}: {row.detail}), and dataset.on_error=fail: fix the file, "
                f"or set dataset.on_error=skip, and {again}"
            )
        if self._most is not None and self._skipped > self._most:
            raise SkippedError(
                f"{self._skipped:,} clips can't be embedded, and dataset.max_skipped={self._given:g} (the last one, "
                f"{row.clip}: {row.reason}): see runner.log, raise the limit, and {again}"
            )

    def _is_gone(self) -> bool:
        """Whether nothing can be listed below the root."""
        try:
            if is_url(self._root):
                return self._is_store_gone()
            with os.scandir(self._root) as entries:
                return next(entries, None) is None
        except (OSError, DatasetError):
            return True

    def _is_store_gone(self) -> bool:
        """Looked at now and then; not known of a store that lets objects be read, and not be listed."""
        if time.monotonic() < self._look_after:
            return False
        try:
            is_gone = next(walk_store(self._root, self._timeout_s), None) is None
        except DatasetError as error:
            is_gone = error.__cause__ is None or not is_denied(error.__cause__)
        self._look_after = time.monotonic() + _LOOK_EVERY_S
        return is_gone


def check_skipped(dataset: DatasetConfig, described: DatasetSummary, skipped: int) -> None:
    """Whether a run may have skipped so many clips, by ``dataset.max_skipped``.

    Raises:
        SkippedError: it may not.
    """
    most = dataset.max_skipped
    if most is not None and skipped > int(most if most >= 1 else most * described.clips):
        raise SkippedError(
            f"{skipped:,} clips can't be embedded, and dataset.max_skipped={most:g}: see the reasons in clips.parquet, "
            "raise the limit, and rerun the same command to resume"
        )
