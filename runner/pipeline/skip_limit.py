"""The limit of skipped clips, and the detection of a data set that is gone altogether."""

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

_LIST_EVERY_S = 10.0
"""Least seconds between two listings of a store: they hold the collector up."""


class SkipLimit:
    """Ends a run that skips more clips than it may, or whose data set is gone.

    Args:
        dataset: configuration of the data set.
        described: the data set.
        skipped: clips that earlier attempts skipped.
    """

    def __init__(self, dataset: DatasetConfig, described: DatasetSummary, skipped: int) -> None:
        self._dataset = dataset
        self._limit = _limit(dataset, described)
        self._root = described.root
        self._skipped = skipped
        self._next_listing = 0.0

    def __call__(self, row: ClipRow) -> None:
        """Count a skipped clip.

        Raises:
            SkippedError: the limit is exceeded.
            DatasetError: the clip is missing because the whole data set is.
            DiskFullError: the temporary folder had no room for it.
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
        if self._dataset.on_error == "fail":
            raise SkippedError(
                f"{row.clip} can't be embedded ({row.reason}: {row.detail}), and dataset.on_error=fail: fix the file, "
                f"or set dataset.on_error=skip, and {again}"
            )
        if self._limit is not None and self._skipped > self._limit:
            raise SkippedError(
                f"{self._skipped:,} clips can't be embedded, and dataset.max_skipped={self._dataset.max_skipped:g} "
                f"(the last one, {row.clip}: {row.reason}): see runner.log, raise the limit, and {again}"
            )

    def forget(self, count: int) -> None:
        """Count so many clips less: a process that died skipped them, and another one will again."""
        self._skipped -= count

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
        """Whether a store lists nothing; False for one that forbids listing, and between two listings."""
        if time.monotonic() < self._next_listing:
            return False
        try:
            is_gone = next(walk_store(self._root, self._dataset.download_timeout_s), None) is None
        except DatasetError as error:
            is_gone = error.__cause__ is None or not is_denied(error.__cause__)
        self._next_listing = time.monotonic() + _LIST_EVERY_S
        return is_gone


def check_skipped(dataset: DatasetConfig, described: DatasetSummary, skipped: int) -> None:
    """Check a finished run's skipped clips against ``dataset.max_skipped``.

    Raises:
        SkippedError: there are more.
    """
    limit = _limit(dataset, described)
    if limit is not None and skipped > limit:
        raise SkippedError(
            f"{skipped:,} clips can't be embedded, and dataset.max_skipped={dataset.max_skipped:g}: see the reasons in "
            "clips.parquet, raise the limit, and rerun the same command to resume"
        )


def _limit(dataset: DatasetConfig, described: DatasetSummary) -> int | None:
    """Return the clips that a run may skip: ``max_skipped``, a share of the data set below 1; None for any number."""
    allowed = dataset.max_skipped
    if allowed is None:
        return None
    return int(allowed if allowed >= 1 else allowed * described.clips)
