"""How many clips a message to a decode process has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import pytest

from runner.dataset.clips import Clip
from runner.pipeline.feeder import Feeder
from runner.pipeline.messages import ClipTask


class Pool:
    """A pool of processes that take whatever comes."""

    has_room = True
    outstanding = 0

    def __init__(self, processes: int) -> None:
        self.sizes: list[int] = []
        self._processes = processes

    def __len__(self) -> int:
        return self._processes

    def retries(self) -> list[Any]:
        return []

    def submit(self, tasks: Sequence[tuple[ClipTask, int]], *, last: bool) -> None:
        self.sizes.append(len(tasks))

    def flush(self) -> None:
        pass


def sizes(clips: int, count: int, processes: int) -> list[int]:
    """The clips of each message of a pipeline that gets so many clips, and expects ``count``."""
    pool: Any = Pool(processes)
    own = (Clip(number, "a.mp3", b"a.mp3", None, None, None, 1000) for number in range(clips))
    Feeder(own, pool, count, lambda job, clip: None, lambda job: None).feed()
    assert sum(pool.sizes) == clips
    return pool.sizes


def test_messages_get_smaller_towards_the_end_so_that_all_processes_end_together() -> None:
    own = sizes(12_000, 12_000, 16)
    assert own[:30] == [*repeat(128, 30)]
    assert own == sorted(own, reverse=True)
    assert own[-2] == 8


@pytest.mark.parametrize("clips", [1, 5, 40])
def test_few_clips_make_several_messages_for_each_process(clips: int) -> None:
    assert max(sizes(clips, clips, 2)) == max(1, clips // 8)


def test_messages_are_large_again_where_more_clips_come_than_were_expected() -> None:
    assert sizes(12_000, 4_000, 2)[-60:-1] == [*repeat(128, 59)]
