"""Canaries: the gate's signals are embedded again among the data's windows during a run.

A device can fail after the gate: by memory that decays, a clock that is too fast, a batch shape that the gate did not
measure.  So signals replace some rows in the first full batch of each type, in one batch of a thousand, and in one more
after the last; the replaced rows are embedded in another call.  A miss ends the run, and the shards written since the
last good canary are redone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.audio.source_windows import SourceWindows
from runner.core.errors import ParityError
from runner.inference.gate import measure_session, message_of, signals_of
from runner.inference.parity import compare

if TYPE_CHECKING:
    from runner.audio.framing import Windows
    from runner.config.schema import ParityConfig
    from runner.inference.parity import Parity
    from runner.inference.session import EmbeddingSession
    from runner.models.answers import Answers

log = logging.getLogger(__name__)

EVERY = 1000
"""Batches of a session from one canary to the next: each costs less than one more batch, so below 0.2 %."""


class Canary:
    """Embeds with a session, and checks its answers to the signals now and then; from any thread.

    Args:
        session: one that has passed the gate.
        answers: the reference's; None with ``parity=off``: embed without canaries.
        config: the gate's.
        dtypes: of windows, that the gate has measured; another is measured before its first batch.
        shards: returns the number of shards written so far.

    Attributes:
        count: canaries so far.
        trusted: shards written when the last good canary began.
        misses: messages of failed canaries, with ``parity=warn``.
    """

    def __init__(
        self,
        session: EmbeddingSession,
        answers: Answers | None,
        config: ParityConfig,
        dtypes: Sequence[str],
        shards: Callable[[], int] = lambda: 0,
    ) -> None:
        self._session, self._answers, self._is_strict = session, answers, config.name == "strict"
        self._tolerance = config.tolerances[session.metadata.precision.effective]
        self._shards = shards
        self._measured: set[tuple[str, int]] = set()  # types of windows, and rows of full batches (0: by the gate)
        for dtype in dtypes:
            self._note(dtype)
        self._random = np.random.Generator(np.random.PCG64(0))
        self._lock = threading.Lock()
        self._batches = 0
        self._last: Windows | SourceWindows | None = None
        self.count = 0
        self.trusted = shards()
        self.misses: list[str] = []

    def embed(self, windows: Windows | SourceWindows, copied: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Embed windows; see ``EmbeddingSession.embed_windows``.

        Raises:
            ParityError: the session is out of tolerance, with ``parity=strict``.
        """
        if self._answers is None or not len(windows):
            return self._session.embed_windows(windows, copied)
        dtype = "float32" if isinstance(windows, SourceWindows) else windows.dtype.name
        with self._lock:
            self._last = windows
            if (dtype, 0) not in self._measured:
                self._judge(measure_session(self._session, self._answers, dtype))
                self._note(dtype)
            self._batches += 1
            full = (dtype, self._session.effective_batch_size)
            is_due = self._batches % EVERY == 0 or (len(windows) >= full[1] and full not in self._measured)
            if is_due:
                self._measured.add(full)
        return self._with_signals(windows, copied) if is_due else self._session.embed_windows(windows, copied)

    def finish(self) -> None:
        """Check once more, among the windows of the last batch, when no other thread embeds.

        Raises:
            ParityError: the session is out of tolerance, with ``parity=strict``.
        """
        last, self._last = self._last, None
        if last is not None:
            self._check(self._resampled(last))
            self._batches = 0

    def _note(self, dtype: str) -> None:
        self._measured.add((dtype, 0))
        if self._session.fills_batches:
            self._measured.add((dtype, self._session.effective_batch_size))

    def _with_signals(
        self, windows: Windows | SourceWindows, copied: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        windows = self._resampled(windows)
        embeddings, signal_rows = self._check(windows, copied)
        replaced = signal_rows[signal_rows < len(windows)]
        embeddings[replaced] = self._session.embed_windows(windows[replaced])
        return embeddings[: len(windows)]

    def _resampled(self, windows: Windows | SourceWindows) -> Windows:
        return np.asarray(self._session.resample(windows)) if isinstance(windows, SourceWindows) else windows

    def _check(
        self, windows: Windows, copied: Callable[[], None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embed windows with signals in some rows; return all embeddings, and the signals' rows.

        Raises:
            ParityError: as ``embed``.
        """
        shards, signals = self._shards(), signals_of(self._session.spec, windows.dtype.name)
        rows = max(len(windows), len(signals))
        batch = np.zeros((rows, windows.shape[1]), windows.dtype)
        batch[: len(windows)] = windows
        with self._lock:
            inner = self._random.permutation(np.arange(1, rows - 1))[: len(signals) - 2]
        assert self._answers is not None
        signal_rows = np.array([0, *inner, rows - 1])  # both ends are among them
        batch[signal_rows] = signals
        embeddings = self._session.embed_windows(batch, copied)
        self._judge(compare(embeddings[signal_rows], self._answers, np.arange(len(signals))))
        with self._lock:
            self.count += 1
            self.trusted = max(self.trusted, shards)
        return embeddings, signal_rows

    def _judge(self, parity: Parity) -> None:
        misses = parity.misses(self._tolerance)
        log.info("canary %d of %s: %s", self.count, self._session.device_name, parity)
        if not misses:
            return
        message = f"in the middle of the run {message_of(self._session, misses)}"
        if self._is_strict:
            raise ParityError(
                f"{message}. Shards written since the last good canary are redone when the run is resumed"
            )
        self.misses.append(message)
