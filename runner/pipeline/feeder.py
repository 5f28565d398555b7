"""Feeds the decode pool with clips, many to a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runner.dataset.packed.address import group_of
from runner.pipeline.messages import ClipTask

if TYPE_CHECKING:
    from runner.dataset.clips import Clip
    from runner.pipeline.decode_pool import DecodePool

_LEAST_CLIPS, _MOST_CLIPS = 8, 128
"""Clips of a message: so many at least, of a data set that has enough, and at most."""

_MESSAGE_BYTES = 16 << 20
"""Largest message: clips, and their files' bytes, roughly."""

_GROUP_BYTES = 32 << 20
"""Bytes up to which a message continues to the end of a Parquet row group: every process with rows of a group reads it
up to them."""

_UNKNOWN_BYTES = 1 << 20
"""Assumed size of a file of unknown size."""

_MESSAGES_A_PROCESS = 4
"""Messages that the clips that are left make for each process: smaller ones towards the end, so that all processes end
together."""


class Feeder:
    """Keeps a decode pool busy with clips; those of a process that died are submitted again, as new jobs.

    Args:
        clips: in order; None where none is ready yet, and more may come.
        pool: the decode pool, open.
        count: number of the clips.
        register: called with every job and its clip.
        discard: called with a job that will not be finished; returns its clip.
    """

    def __init__(
        self,
        clips: Iterator[Clip | None],
        pool: DecodePool,
        count: int,
        register: Callable[[int, Clip], None],
        discard: Callable[[int], Clip | None],
    ) -> None:
        self._clips = clips
        self._pool = pool
        self._count = count
        self._largest = self._even(count)
        self._register, self._discard = register, discard
        self._next_job = 0
        self._last_clip: int | None = None
        self._next_clip: Clip | None = None
        self._is_exhausted = False
        self._advance()

    def feed(self, may_start: Callable[[Clip, int | None], bool] = lambda clip, last: True) -> bool:
        """Submit clips while the pool has room; return whether clips or results of the pool are still to come.

        Args:
            may_start: function of a clip and the number of the one before (None: of none): whether it may be begun.
        """

        def has_more() -> bool:
            return self._next_clip is not None and may_start(self._next_clip, self._last_clip)

        if self._next_clip is None:
            self._advance()
        retries = [
            (clip, size, task.crashes) for task, size in self._pool.retries() if (clip := self._discard(task.job))
        ]
        while retries or (self._pool.has_room and has_more()):
            most = self._message_clips()
            message = [(self._new_task(clip, crashes), size) for clip, size, crashes in retries[:most]]
            del retries[:most]
            message_bytes = sum(size for _, size in message)
            while (clip := self._next_clip) is not None and may_start(clip, self._last_clip):
                is_full = len(message) >= most or (message and message_bytes >= _MESSAGE_BYTES)
                if is_full and not (message_bytes < _GROUP_BYTES and _in_one_group(message[-1][0].path, clip.path)):
                    break
                size = clip.bytes if clip.bytes >= 0 else _UNKNOWN_BYTES
                message.append((self._new_task(clip, 0), size))
                message_bytes += size
                self._last_clip = clip.number
                self._advance()
            self._pool.submit(message, last=not has_more())
        if has_more():
            return True
        self._pool.flush()
        return bool(self._pool.outstanding) or (self._next_clip is None and not self._is_exhausted)

    def _message_clips(self) -> int:
        """Return the clips of the next message; ``count`` is an estimate where other pipelines share the work."""
        left = self._count - self._next_job
        return max(self._even(left), min(_LEAST_CLIPS, self._largest)) if left > 0 else self._largest

    def _even(self, clips: int) -> int:
        return max(1, min(_MOST_CLIPS, clips // (_MESSAGES_A_PROCESS * len(self._pool))))

    def _advance(self) -> None:
        try:
            self._next_clip = next(self._clips)
        except StopIteration:
            self._next_clip, self._is_exhausted = None, True

    def _new_task(self, clip: Clip, crashes: int) -> ClipTask:
        job, self._next_job = self._next_job, self._next_job + 1
        self._register(job, clip)
        return ClipTask(job, clip.path, clip.start, clip.end, crashes)


def _in_one_group(path: bytes, following: bytes) -> bool:
    group = group_of(path)
    return group is not None and group == group_of(following)
