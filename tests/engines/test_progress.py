"""How far a run is: what is told while clips are under way, and what is shown of it."""

from __future__ import annotations

import io
import json
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from runner.contract.events import Events
from runner.engines.progress import estimate_clips, report_progress
from runner.jobs.terminal import RunProgress
from runner.pipeline.messages import PipelineStats, Progress


class FakePool:
    """A pool of so many decode processes, whose clips are decoded in part."""

    def __init__(self, processes: int, parts: float = 0.0) -> None:
        self._processes = processes
        self.memory = SimpleNamespace(fractions_decoded=lambda: parts)

    def __len__(self) -> int:
        return self._processes


def told(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_clip_of_many_hours_has_a_speed_before_it_ends() -> None:
    stats = PipelineStats(started_at=time.perf_counter())
    stream = io.StringIO()
    with report_progress(stats, Events(stream), clips_before=2, hop_s=0.96, pool=FakePool(4)):
        stats.examples_done = 5000
        while not told(stream):
            time.sleep(0.01)
        first = told(stream)[-1]
        stats.progress.clips = stats.progress.embedded = 1
        stats.progress.examples, stats.progress.audio_s = 4000, 3841.0
        before = len(told(stream))
        while len(told(stream)) == before:
            time.sleep(0.01)
        second = told(stream)[-1]
        stats.examples_done = 7000  # of which the last were of a clip that ends as skipped
        stats.progress.clips = 2
    last = told(stream)[-1]
    assert (first["clips"], first["attempt_clips"], first["clips_under_way"]) == (2, 0, 0.0)
    assert (first["examples"], first["audio_s"]) == (5000, pytest.approx(4800))
    assert (second["clips"], second["attempt_clips"], second["clips_under_way"]) == (3, 1, 0.25)
    assert (second["examples"], second["audio_s"]) == (5000, pytest.approx(3841 + 960))
    assert (last["clips"], last["clips_under_way"], last["examples"], last["audio_s"]) == (4, 0.0, 4000, 3841.0)


@pytest.mark.parametrize(
    ("finished", "examples", "parts", "under_way"), [(10, 900, 0.0, 3), (10, 110, 0.5, 1), (0, 5000, 0.25, 0.25)]
)
def test_parts_of_clips_are_known_by_what_is_decoded_or_by_the_average(
    finished: int, examples: int, parts: float, under_way: float
) -> None:
    progress = Progress(clips=finished, embedded=finished, examples=10 * finished, audio_s=10.0 * finished)
    assert estimate_clips(examples - progress.examples, progress, FakePool(3, parts)) == under_way


@pytest.mark.parametrize(
    ("clips", "audio_s", "attempt_clips", "under_way", "line"),
    [
        (0, 4800.0, 0, 0.0, "0 of 10 clips, 480 × realtime"),
        (2, 4800.0, 2, 0.5, "2 of 10 clips, 480 × realtime, about 30 s left"),
        (6, 4800.0, 1, 0.0, "6 of 10 clips, 480 × realtime, about 40 s left"),
        (0, 0.0, 0, 0.0, "0 of 10 clips, no speed yet"),
        (9, 4800.0, 4, 3.0, "9 of 10 clips, 480 × realtime, about 0 s left"),
    ],
)
def test_a_plain_line_counts_what_is_under_way(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    clips: int,
    audio_s: float,
    attempt_clips: int,
    under_way: float,
    line: str,
) -> None:
    monkeypatch.setattr("runner.jobs.terminal._PLAIN_EVERY_S", 0.0)
    with RunProgress(10, plain=True) as progress:
        progress.counts(clips, audio_s, 10.0, 0, attempt_clips, under_way=under_way)
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_bar_moves_with_what_is_under_way_and_counts_whole_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        "runner.jobs.terminal.console", Console(file=screen, force_terminal=True, width=120, color_system=None)
    )
    with RunProgress(10, plain=False) as progress:
        progress.counts(2, 4800.0, 10.0, 1, 2, under_way=0.5)
        assert progress._progress.tasks[0].completed == 2.5
        progress._progress.refresh()
    assert "2/10 clips" in screen.getvalue()
    assert "480 × realtime · 1 skipped" in screen.getvalue()
