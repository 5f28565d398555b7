"""Progress of a run on this machine, for the command: clips, audio and speed, a few times a second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from runner.contract.events import ProgressEvent

if TYPE_CHECKING:
    from runner.contract.events import Events
    from runner.pipeline.decode_pool import DecodePool
    from runner.pipeline.messages import PipelineStats, Progress

_PROGRESS_S = 0.25


@contextlib.contextmanager
def report_progress(
    stats: PipelineStats, events: Events, clips_before: int, hop_s: float, pool: DecodePool
) -> Iterator[None]:
    """Send counts to the command from a thread, a few times a second, and once at the end.

    The examples of clips under way count as audio, one for every ``hop_s``, so that an hour-long clip shows its speed
    at once; the last counts are of finished clips alone.  ``clips_before`` were done before this attempt.
    """
    stopped = threading.Event()

    def report() -> None:
        while not stopped.wait(_PROGRESS_S):
            examples = max(0, stats.examples_done - stats.progress.examples)
            send(examples, estimate_clips(examples, stats.progress, pool))

    def send(examples_under_way: int, clips_under_way: float) -> None:
        progress = stats.progress
        events.send(
            ProgressEvent(
                clips=clips_before + progress.clips,
                attempt_clips=progress.clips,
                skipped=sum(progress.skipped.values()),
                examples=progress.examples + examples_under_way,
                audio_s=progress.audio_s + examples_under_way * hop_s,
                elapsed_s=time.perf_counter() - stats.started_at,
                clips_under_way=clips_under_way,
            )
        )

    thread = threading.Thread(target=report, name="report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        send(0, 0.0)


def estimate_clips(examples: int, progress: Progress, pool: DecodePool) -> float:
    """Estimate the clips that these examples of clips under way amount to, from decoded parts or the average clip.

    Each decode process has at most one clip under way in part.
    """
    average = progress.examples / max(progress.embedded, 1)
    return min(len(pool), max(pool.memory.fractions_decoded(), examples / average if average else 0.0))
