"""``memory.batch_size=auto``: the batch size at which a session is fastest, found by climbing on the session itself.

The climb begins at the policy's own size and never ends below it; what a busy machine measures is not believed.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.metrics import BACKGROUND_LOAD, MAX_BACKGROUND_LOAD
from runner.devices.load import BackgroundLoad, family_cpu_s
from runner.vggish.constants import EXAMPLE_SAMPLES

if TYPE_CHECKING:
    from runner.inference.session import VGGishSession

log = logging.getLogger("runner.engines.worker")

BUDGET_S = 5.0
"""For all of it: what XLA needs to compile each size for a GPU, and measuring."""

_KEPT_S = 7 * 24 * 3600.0
"""What was measured is believed for so long: drivers, limits and neighbours change."""

_WORTH_IT = 1.03
"""A larger batch costs memory: it must be so much faster than the best smaller one."""

_RUN_S = 0.15
"""A batch size is measured for at least so long, and three times."""

_CALLS_AHEAD = 4
"""Calls that are queued at a time on a device that computes while batches are copied, as replicas do."""


@dataclass(frozen=True)
class Step:
    """One batch size: its speed, what its tensors took on the device at most (None: not known), and its compilation."""

    batch_size: int
    examples_per_s: float
    memory_mib: float | None
    compile_s: float


@dataclass(frozen=True)
class BatchSizeSearch:
    """The steps taken, the batch size chosen, and why the climb ended there."""

    steps: tuple[Step, ...]
    batch_size: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for result.json."""
        return {"steps": [asdict(step) for step in self.steps], "batch_size": self.batch_size, "reason": self.reason}


def search_batch_size(
    measure: Callable[[int], Step | None],
    sizes: Sequence[int],
    compiled: Container[int] = (),
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchSizeSearch:
    """Try batch sizes, smallest first, until throughput stops improving, memory runs out or time is up.

    Args:
        measure: one batch size; None if the device has not the memory for it.
        sizes: to try, ascending.
        compiled: sizes whose program there is already.
        budget_s: seconds; a size is not begun that would not be done in time, by what measuring the last one took
            twice, and by the longest compilation so far unless it is compiled.
        clock: gives seconds.
    """
    steps: list[Step] = []
    best: Step | None = None
    reason = "the largest that the policy allows"
    start = clock()
    last_s = compile_s = 0.0
    for size in sizes:
        began = clock()
        estimated_s = 2 * last_s + (0.0 if size in compiled else compile_s)
        if steps and began - start + estimated_s > budget_s:
            reason = f"{began - start:.1f} s are over, and {size} would take too long ({estimated_s:.1f} s)"
            break
        step = measure(size)
        if step is not None:
            last_s = clock() - began - step.compile_s
            compile_s = max(compile_s, step.compile_s)
        if step is None:
            reason = f"{size} does not fit into the memory that the policy allows"
            break
        steps.append(step)
        if best is None or step.examples_per_s >= _WORTH_IT * best.examples_per_s:
            best = step
        elif best is not steps[-2]:
            reason = (
                f"neither {steps[-2].batch_size} nor {size} is faster than {best.batch_size} by {_WORTH_IT - 1:.0%}"
            )
            break
    chosen = best.batch_size if best else sizes[0]
    return BatchSizeSearch(tuple(steps), chosen, reason)


def sizes_from(default: int, fits: Callable[[int], bool]) -> list[int]:
    """Sizes to try, ascending: the policy's own and its doubles, as far as they fit."""
    larger = itertools.takewhile(fits, (default << step for step in range(1, 8)))
    return [default, *larger]


def climb_undisturbed(
    measure: Callable[[int], Step | None], sizes: Sequence[int], compiled: Container[int] = ()
) -> dict[str, Any]:
    """Climb, for result.json; on a machine that others keep busy the first size is chosen, whatever was measured."""
    others, own_cpu_s = BackgroundLoad(), family_cpu_s()
    found = search_batch_size(measure, sizes, compiled)
    share = others.share(family_cpu_s() - own_cpu_s)
    if share > MAX_BACKGROUND_LOAD:
        why = f"the policy's own, as {BACKGROUND_LOAD} {share:.0%} of the processors; the next run measures again"
        found = replace(found, batch_size=sizes[0], reason=why)
    return {**found.to_dict(), "background_cpu_share": share, "measured_at": time.time()}


def is_undisturbed(value: Mapping[str, Any]) -> bool:
    """Whether what ``climb_undisturbed`` gave may be believed later."""
    return float(value["background_cpu_share"]) <= MAX_BACKGROUND_LOAD


def is_fresh(value: Any) -> bool:
    """Whether a value read from a file is what ``climb_undisturbed`` gave, undisturbed and not long ago."""
    age = time.time() - float(value["measured_at"])
    return is_search_result(value) and is_undisturbed(value) and 0 <= age < _KEPT_S


def measure_on(session: VGGishSession, dtype: str) -> Callable[[int], Step | None]:
    """What ``search_batch_size`` needs to know of a session, whose batch size it changes.

    On a GPU that is the speed from windows that lie there: batches are copied while others are computed.
    """

    def measure(size: int) -> Step | None:
        session.set_batch_size(size)
        halved = len(session.oom_backoffs)
        compile_s = session.warm_up(dtype)
        rng = np.random.default_rng(0)
        samples = rng.integers(-9000, 9000, (size, EXAMPLE_SAMPLES)).astype(np.int16)
        windows = samples if dtype == "int16" else (samples / np.float32(32768)).astype(np.float32)
        if len(session.oom_backoffs) > halved:
            return None
        calls = _CALLS_AHEAD if session.in_flight > 1 else 1
        given = session.on_device(windows) if session.in_flight > 1 else None
        fastest, start = float("inf"), time.perf_counter()
        for run in range(1 << 30):
            began = time.perf_counter()
            if given is None:
                session.embed_windows(windows)
            else:
                for _ in range(calls):
                    last = session.run_on_device(given)
                last.numpy()
            ended = time.perf_counter()
            if run:  # the first one finds cold caches
                fastest = min(fastest, ended - began)
            if run > 1 and ended - start > _RUN_S:
                break
        if len(session.oom_backoffs) > halved:
            return None
        step = Step(size, calls * size / fastest, session.memory_peak_mib(), compile_s)
        log.info("batch size %d: %.0f examples/s", size, step.examples_per_s)
        return step

    return measure


def is_search_result(value: Any) -> bool:
    """Whether a value read from a file is what ``BatchSizeSearch.to_dict`` gives."""
    return isinstance(value, dict) and {"steps", "batch_size", "reason"} <= set(value) and bool(value["steps"])
