"""``memory.batch_size=auto``: search for the batch size at which a session is fastest.

The search starts at the policy's size and never goes below it; measurements on a busy machine are discarded.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.audio.framing import synthetic_windows
from runner.contract.result import BatchSizeCurve, BatchSizePoint
from runner.core.cache import remembered
from runner.core.metrics import BACKGROUND_LOAD, MAX_BACKGROUND_LOAD
from runner.devices.load import BackgroundLoad, family_cpu_s

if TYPE_CHECKING:
    from runner.inference.session import EmbeddingSession

log = logging.getLogger(__name__)

BUDGET_S = 5.0
"""Seconds for the whole search: measuring, and XLA's compilation of each size for a GPU."""

_MAX_AGE_S = 7 * 24 * 3600.0
"""Age after which a search is repeated: drivers, limits and neighbors change."""

_MIN_GAIN = 1.03
"""Least speed of a larger batch, which costs memory, relative to the best smaller one."""

_MEASURE_S = 0.15
"""Least seconds that a batch size is measured, in three runs or more."""

_CALLS_AHEAD = 4
"""Calls that are queued at a time on a device that computes while batches are copied, as replicas do it."""


def search_batch_size(
    measure: Callable[[int], BatchSizePoint | None],
    sizes: Sequence[int],
    compiled: Container[int] = (),
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSizeCurve:
    """Try batch sizes, smallest first, until throughput stops improving, memory runs out or time is up.

    Args:
        measure: function that measures a batch size; None if the device lacks the memory for it.
        sizes: to try, ascending.
        compiled: sizes whose program is compiled already.
        budget_s: seconds; a size is not tried that would exceed them, estimated as twice the last measurement and, if
            not compiled, the longest compilation.
        clock: returns seconds.
    """
    trials: list[BatchSizePoint] = []
    best: BatchSizePoint | None = None
    reason = "the largest that the policy allows"
    start = clock()
    last_s = compile_s = 0.0
    for size in sizes:
        began = clock()
        estimated_s = 2 * last_s + (0.0 if size in compiled else compile_s)
        if trials and began - start + estimated_s > budget_s:
            reason = f"{began - start:.1f} s are over, and {size} would take too long ({estimated_s:.1f} s)"
            break
        trial = measure(size)
        if trial is None:
            reason = f"{size} does not fit into the memory that the policy allows"
            break
        last_s = clock() - began - trial.compile_s
        compile_s = max(compile_s, trial.compile_s)
        trials.append(trial)
        if best is None or trial.examples_per_s >= _MIN_GAIN * best.examples_per_s:
            best = trial
        elif best is not trials[-2]:
            reason = (
                f"neither {trials[-2].batch_size} nor {size} is faster than {best.batch_size} by {_MIN_GAIN - 1:.0%}"
            )
            break
    chosen = best.batch_size if best else sizes[0]
    return BatchSizeCurve(tuple(trials), chosen, reason)


def sizes_from(default: int, fits: Callable[[int], bool]) -> list[int]:
    """Return the sizes to try, ascending: the policy's and its doubles, as far as they fit."""
    larger = itertools.takewhile(fits, (default << doublings for doublings in range(1, 8)))
    return [default, *larger]


def search_undisturbed(
    measure: Callable[[int], BatchSizePoint | None], sizes: Sequence[int], compiled: Container[int] = ()
) -> BatchSizeCurve:
    """Search; on a machine that other programs keep busy, choose the first size."""
    background, own_cpu_s = BackgroundLoad(), family_cpu_s()
    search = search_batch_size(measure, sizes, compiled)
    share = background.share(family_cpu_s() - own_cpu_s)
    if share > MAX_BACKGROUND_LOAD:
        why = f"the policy's own, as {BACKGROUND_LOAD} {share:.0%} of the processors; the next run measures again"
        search = replace(search, batch_size=sizes[0], reason=why)
    return replace(search, background_cpu_share=share, measured_at=time.time())


def remembered_search(cache: Path, key: str, search: Callable[[], BatchSizeCurve]) -> BatchSizeCurve:
    """Return the result of ``search_undisturbed`` for ``key`` from the cache, or search now.

    Only an undisturbed search is cached, and used for a week.
    """
    path = cache / "batch_size.json"
    return _curve_of(remembered(path, key, lambda: asdict(search()), _is_fresh, _is_undisturbed))


def _curve_of(value: Mapping[str, Any]) -> BatchSizeCurve:
    return BatchSizeCurve(**{**value, "steps": tuple(BatchSizePoint(**step) for step in value["steps"])})


def _is_undisturbed(value: Mapping[str, Any]) -> bool:
    """Whether a search is not distorted by other programs."""
    return float(value["background_cpu_share"]) <= MAX_BACKGROUND_LOAD


def _is_fresh(value: Mapping[str, Any]) -> bool:
    """Whether a value read from the cache is a search, undisturbed and recent."""
    age = time.time() - float(value["measured_at"])
    return bool(_curve_of(value).steps) and _is_undisturbed(value) and 0 <= age < _MAX_AGE_S


def measure_on(session: EmbeddingSession, dtype: str) -> Callable[[int], BatchSizePoint | None]:
    """Return the function by which ``search_batch_size`` measures a session; it changes the session's batch size.

    On a GPU it measures windows that are there already, as batches are copied while others are computed.
    """

    def measure(size: int) -> BatchSizePoint | None:
        session.set_batch_size(size)
        backoffs = len(session.oom_backoffs)
        compile_s = session.warm_up(dtype)
        if len(session.oom_backoffs) > backoffs:
            return None
        windows = synthetic_windows(size, session.spec.window_samples, dtype)
        calls = _CALLS_AHEAD if session.in_flight > 1 else 1
        on_device = session.on_device(windows) if session.in_flight > 1 else None
        fastest, start = float("inf"), time.perf_counter()
        for run in itertools.count():
            began = time.perf_counter()
            if on_device is None:
                session.embed_windows(windows)
            else:
                for _ in range(calls):
                    last = session.run_on_device(on_device)
                last.numpy()
            ended = time.perf_counter()
            if run:  # the first one finds cold caches
                fastest = min(fastest, ended - began)
            if run > 1 and ended - start > _MEASURE_S:
                break
        if len(session.oom_backoffs) > backoffs:
            return None
        trial = BatchSizePoint(size, calls * size / fastest, session.memory_peak_mib(), compile_s)
        log.info("batch size %d: %.0f examples/s", size, trial.examples_per_s)
        return trial

    return measure
