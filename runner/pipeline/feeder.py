"""Clips into the decode pool, in messages that it takes as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runner.dataset.packed.address import group_of
from runner.pipeline.messages import ClipTask

if TYPE_CHECKING:
    from runner.dataset.clips import Clip
    from runner.pipeline.decode_pool import DecodePool

_MESSAGE_CLIPS = 128

_MESSAGE_BYTES = 16 << 20
"""Clips go to decode processes in messages of at most so many, and of about so many bytes."""

_GROUP_BYTES = 32 << 20
"""A message that ends inside a Parquet file's row group goes on to the group's end, up to so many bytes: every process
that has rows of it reads the group up to them."""

_UNKNOWN_BYTES = 1 << 20

_MESSAGES_A_PROCESS = 4
"""A small data set goes in smaller messages: every process gets so many."""


class Feeder:
    """Keeps a decode pool busy with clips; those of a process that died go in once more, as new jobs.

    Args:
        clips: in order; None where there is none for now, and more may come.
        pool: the decode pool, open.
        clips_left: how many clips those are.
        register: told of every job and its clip.
        forget: told of a job that will not be finished; gives its clip.
    """

    def __init__(
        self,
        clips: Iterator[Clip | None],
        pool: DecodePool,
        clips_left: int,
        register: Callable[[int, Clip], None],
        forget: Callable[[int], Clip | None],
    ) -> None:
        self._clips = clips
        self._pool = pool
        self._message_clips = _message_size(clips_left, len(pool))
        self._register_job, self._forget = register, forget
        self._next_job = 0
        self._last_clip: int | None = None
        self._waiting: Clip | None = None
        self._over = False
        """Whether there will be no more clips."""
        self._look()

    def feed(self, may_start: Callable[[Clip, int | None], bool] = lambda clip, last: True) -> bool:
        """Hand out clips while the pool has room; whether anything is still to come, from the pool or of clips.

        Args:
            may_start: whether a clip may be begun after the one with that number (None: after none).
        """

        def more() -> bool:
            return self._waiting is not None and may_start(self._waiting, self._last_clip)

        if self._waiting is None:
            self._look()
        again = [(clip, size, task.attempt) for task, size in self._pool.retries() if (clip := self._forget(task.job))]
        while again or (self._pool.has_room and more()):
            message = again[: self._message_clips]
            del again[: self._message_clips]
            size = sum(size for _, size, _ in message)
            while self._waiting is not None and more():
                is_full = len(message) >= self._message_clips or (message and size >= _MESSAGE_BYTES)
                if is_full and not (size < _GROUP_BYTES and _in_one_group(message[-1][0], self._waiting)):
                    break
                own = self._waiting.bytes if self._waiting.bytes >= 0 else _UNKNOWN_BYTES
                message.append((self._waiting, own, 0))
                size += own
                self._last_clip = self._waiting.number
                self._look()
            tasks = [(self._register(clip, attempt), own) for clip, own, attempt in message]
            self._pool.submit(tasks, last=not more())
        if more():
            return True
        self._pool.no_more()
        return bool(self._pool.outstanding) or (self._waiting is None and not self._over)

    def _look(self) -> None:
        """Have the next clip waiting, if there is one."""
        try:
            self._waiting = next(self._clips)
        except StopIteration:
            self._waiting, self._over = None, True

    def _register(self, clip: Clip, attempt: int) -> ClipTask:
        job, self._next_job = self._next_job, self._next_job + 1
        self._register_job(job, clip)
        return ClipTask(job, clip.path, clip.start, clip.end, attempt)


def _in_one_group(clip: Clip, following: Clip) -> bool:
    group = group_of(clip.path)
    return group is not None and group == group_of(following.path)


def _message_size(clips: int, processes: int) -> int:
    return max(1, min(_MESSAGE_CLIPS, clips // (_MESSAGES_A_PROCESS * processes)))
