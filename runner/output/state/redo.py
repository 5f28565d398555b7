"""Which shards that are done are worth doing again: they lack clips for a reason that may have passed.

A clip that is lost for good leaves a finished run finished: where it can be seen without decoding whether the reason is
gone, that is looked at first.  The others are tried once by each command.
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

from runner.core.layout import CLIP_PARTS, STATE
from runner.dataset.packed.address import container_of, is_packed
from runner.storage.filesystem import store_of
from runner.storage.prefetch import is_remote
from runner.storage.retry import is_transient, with_retries

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry

_THREADS = 16

_ASKED = 16
"""Objects of a shard that are asked for at most, others each time: what keeps objects away seldom does so for one."""

_PATIENCE_S = 5.0
"""How long a store may refuse an object for what may pass, before it is taken for silent."""


class Stores:
    """Asks object stores for single objects, until one does not answer."""

    def __init__(self) -> None:
        self._silent = False

    def give(self, path: bytes) -> bool:
        """Whether an object can be had."""
        url = os.fsdecode(path)
        try:
            if not self._silent:
                with_retries(lambda: store_of(url).cat_file(url, start=0, end=1), _PATIENCE_S)
                return True
        except Exception as error:
            self._silent = self._silent or is_transient(error)
        return False


class Lost(NamedTuple):
    """A clip that was skipped; ``there`` is whether its file is in the data set as it is listed now."""

    path: bytes
    detail: str | None
    there: bool
    stores: Stores


def _is_there(lost: Lost) -> bool:
    return lost.there or (is_remote(lost.path) and lost.stores.give(lost.path))


def _opens(lost: Lost) -> bool:
    if is_remote(lost.path):
        return lost.stores.give(lost.path)
    try:
        descriptor = os.open(lost.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe's writer is not waited for
    except (OSError, ValueError):
        return False
    try:
        os.read(descriptor, 1)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _has_its_decoder(lost: Lost) -> bool:
    return "the extra av" in (lost.detail or "") and importlib.util.find_spec("av") is not None


def _is_tried(lost: Lost) -> bool:
    return True


MAY_PASS: Mapping[str, Callable[[Lost], bool]] = {
    "missing": _is_there,
    "unreadable": _opens,
    "unsupported_format": _has_its_decoder,
    "timeout": _is_tried,
    "decoder_crashed": _is_tried,
    "download_timeout": _is_tried,
}
"""Of ``runner.audio.REASONS`` those that may pass, and whether one may have passed for a clip.

A decoder may have been too slow on a busy machine, or have died because the system ran out of memory.
"""


def shards_to_retry(
    folder: Path,
    done: Mapping[int, ShardEntry],
    shards: Sequence[tuple[int, int]],
    paths: pa.ChunkedArray,
    there: NDArray[np.bool_],
    get_parts: Callable[[Iterable[int]], None] = lambda shards: None,
) -> list[int]:
    """The shards with a clip that was skipped and may be embedded now.

    Args:
        folder: the run's.
        done: the shards that are done.
        shards: (first row, one past the last) of each shard.
        paths: of all rows.
        there: bool [rows], whether a row's file is in the data set as it is listed now.
        get_parts: has the parts of clips.parquet of these shards in the folder, where they may be elsewhere.
    """
    found, unsure = [], []
    for number, entry in done.items():
        reasons = MAY_PASS.keys() & entry.counts.get("skipped", {}).keys()
        if any(MAY_PASS[reason] is _is_tried for reason in reasons):
            found.append(number)
        elif reasons:
            unsure.append(number)
    get_parts(unsure)
    stores = Stores()

    def may_have_passed(number: int) -> bool:
        first, end = shards[number]
        try:
            part = pq.read_table(
                folder / STATE / CLIP_PARTS / f"part-{number:05d}.parquet", columns=["reason", "detail"]
            )
        except (OSError, pa.ArrowException):
            return True  # it is damaged, and done again anyway
        columns = (part["reason"].to_pylist(), part["detail"].to_pylist(), paths[first:end].to_pylist())
        rows = zip(*columns, there[first:end].tolist(), strict=False)
        # a packed clip that is not listed: its container has other clips now, or none
        lost = [row for row in rows if row[0] in MAY_PASS and (row[3] or not is_packed(row[2]))]
        random.shuffle(lost)
        asked = 0
        for reason, detail, path, is_listed in lost:
            asks = is_remote(path) and not (is_listed and reason == "missing")
            asked += asks
            if not (asks and asked > _ASKED) and MAY_PASS[reason](Lost(container_of(path), detail, is_listed, stores)):
                return True
        return False

    with ThreadPoolExecutor(_THREADS) as threads:
        found += [number for number, again in zip(unsure, threads.map(may_have_passed, unsure), strict=True) if again]
    return sorted(found)
