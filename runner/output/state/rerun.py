"""Committed shards to re-run, because clips in them were skipped for a reason that may have passed.

Where it can be told without decoding whether the reason is gone, that is checked first, so that a clip that is lost for
good leaves a finished run finished.  Other such clips are tried once by each command.
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from runner.core.layout import RunLayout, shard_name
from runner.dataset.packed.address import container_of, is_packed
from runner.storage.driver import call_driver
from runner.storage.filesystem import store_of
from runner.storage.prefetch import is_remote
from runner.storage.retry import is_transient, with_retries

if TYPE_CHECKING:
    from runner.core.span import Span
    from runner.output.state.journal import ShardEntry

_THREADS = 16

_MAX_REQUESTS = 16
"""Objects of a shard that are requested at most, in random order: most outages concern all objects alike."""

_REQUEST_TIMEOUT_S = 5.0
"""How long a store may answer with transient errors before no further object is requested from any."""


class ObjectProbe:
    """Asks object stores for single objects, until one does not answer."""

    def __init__(self) -> None:
        self._gave_up = False

    def exists(self, path: bytes) -> bool:
        """Return whether the first byte of an object can be read."""
        url = os.fsdecode(path)
        try:
            if not self._gave_up:
                with_retries(lambda: call_driver(store_of(url), "cat_file", url, start=0, end=1), _REQUEST_TIMEOUT_S)
                return True
        except Exception as error:
            self._gave_up = self._gave_up or is_transient(error)
        return False


class SkippedClip(NamedTuple):
    """A skipped clip; ``is_listed`` is whether its file is in the data set as it is listed now."""

    path: bytes
    detail: str | None
    is_listed: bool
    probe: ObjectProbe


def _exists(clip: SkippedClip) -> bool:
    return clip.is_listed or (is_remote(clip.path) and clip.probe.exists(clip.path))


def _is_readable(clip: SkippedClip) -> bool:
    if is_remote(clip.path):
        return clip.probe.exists(clip.path)
    try:
        descriptor = os.open(clip.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # does not wait for a pipe's writer
    except (OSError, ValueError):
        return False
    try:
        os.read(descriptor, 1)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _has_decoder(clip: SkippedClip) -> bool:
    return "the extra av" in (clip.detail or "") and importlib.util.find_spec("av") is not None


def _always(clip: SkippedClip) -> bool:
    return True


TRANSIENT_REASONS: Mapping[str, Callable[[SkippedClip], bool]] = {
    "missing": _exists,
    "unreadable": _is_readable,
    "unsupported_format": _has_decoder,
    "timeout": _always,
    "decoder_crashed": _always,
    "download_timeout": _always,
}
"""The reasons of ``runner.audio.reader.REASONS`` that may pass, each with a check whether it has passed for a clip.

A decoder may have been too slow on a busy machine, or have been killed because the system ran out of memory.
"""


def shards_to_retry(
    folder: Path,
    committed: Mapping[int, ShardEntry],
    shards: Sequence[Span],
    paths: pa.ChunkedArray,
    exists: NDArray[np.bool_],
    download: Callable[[Iterable[int]], None] = lambda shards: None,
) -> list[int]:
    """Return the shards with a skipped clip that may be embedded now.

    Args:
        folder: the run's.
        committed: the shards to look through.
        shards: the rows in each shard.
        paths: of all rows.
        exists: bool [rows], whether a row's file is in the data set as it is listed now.
        download: gets these shards' rows of clips.parquet into the folder, where they may be elsewhere.
    """
    retried, to_check = [], []
    for number, entry in committed.items():
        reasons = TRANSIENT_REASONS.keys() & entry.counts.skipped.keys()
        if any(TRANSIENT_REASONS[reason] is _always for reason in reasons):
            retried.append(number)
        elif reasons:
            to_check.append(number)
    download(to_check)
    probe = ObjectProbe()

    def may_have_passed(number: int) -> bool:
        first, end = shards[number]
        try:
            clips = pq.read_table(
                RunLayout(folder).clip_shards / shard_name(number, ".parquet"), columns=["reason", "detail"]
            )
        except (OSError, pa.ArrowException):
            return True  # damaged: the shard is re-run in any case
        columns = (clips["reason"].to_pylist(), clips["detail"].to_pylist(), paths[first:end].to_pylist())
        rows = zip(*columns, exists[first:end].tolist(), strict=False)
        skipped = [
            (reason, SkippedClip(container_of(path), detail, is_listed, probe))
            for reason, detail, path, is_listed in rows
            # a packed clip that is not listed: its container has other clips now, or none
            if reason in TRANSIENT_REASONS and (is_listed or not is_packed(path))
        ]
        random.shuffle(skipped)
        requests = 0
        for reason, clip in skipped:
            needs_request = is_remote(clip.path) and not (clip.is_listed and reason == "missing")
            requests += needs_request
            if not (needs_request and requests > _MAX_REQUESTS) and TRANSIENT_REASONS[reason](clip):
                return True
        return False

    with ThreadPoolExecutor(_THREADS) as threads:
        passed = threads.map(may_have_passed, to_check)
        retried += [number for number, has_passed in zip(to_check, passed, strict=True) if has_passed]
    return sorted(retried)
