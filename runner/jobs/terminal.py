"""What a person sees while a run goes on: warnings, and a progress bar or plain lines."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from runner.core.printable import printable

console = Console(stderr=True, highlight=False)
"""Standard error: standard output is for the summary alone."""

_PLAIN_EVERY_S = 10.0


def say(text: str, style: str | None = None) -> None:
    """Show a text on standard error as it is, but for what a terminal would act on."""
    console.print(printable(text), style=style, markup=False, soft_wrap=True)


class TerminalHandler(logging.Handler):
    """Shows log records on the terminal without breaking the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        color = "red" if record.levelno >= logging.ERROR else "yellow"
        console.print(f"[{color}]{record.levelname.lower()}:[/{color}] ", end="")
        say(record.getMessage())


class RunProgress:
    """Shows how far a run is: a bar on a terminal, else a plain line every ten seconds.

    Args:
        clips: how many there are in all.
        plain: whether to print plain lines; None: unless standard error is a terminal.
    """

    def __init__(self, clips: int, plain: bool | None = None) -> None:
        self._clips = clips
        self._plain = (not sys.stderr.isatty()) if plain is None else plain
        self._last_line = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[clips]}/{task.total} clips"),
            TextColumn("[cyan]{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=self._plain,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=clips, clips=0, speed="")

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        """Name what is being done."""
        self._progress.update(self._task, description=name)
        if self._plain:
            console.print(name, markup=False)

    def counts(
        self,
        clips: int,
        audio_s: float,
        elapsed_s: float,
        skipped: int,
        attempt_clips: int | None = None,
        under_way: float = 0.0,
    ) -> None:
        """Show the counts so far.

        Args:
            clips: finished.
            audio_s: seconds of audio embedded in this session, of clips under way too.
            elapsed_s: seconds of this session.
            skipped: clips that were.
            attempt_clips: finished in this attempt; all of them when None.
            under_way: what the clips under way come to, counted in clips.
        """
        attempt_done = (clips if attempt_clips is None else attempt_clips) + under_way
        done = min(clips + under_way, self._clips)
        speed = f"{audio_s / elapsed_s:,.0f} × realtime" if elapsed_s > 0 and audio_s > 0 else "no speed yet"
        if skipped:
            speed += f" · {skipped} skipped"
        self._progress.update(self._task, completed=done, clips=clips, speed=speed)
        if self._plain and time.monotonic() - self._last_line >= _PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            left = elapsed_s / attempt_done * (self._clips - done) if attempt_done else float("nan")
            remaining = f", about {left:,.0f} s left" if attempt_done else ""
            console.print(f"{clips} of {self._clips} clips, {speed}{remaining}", markup=False)


class DownloadProgress:
    """Shows a download's progress: a line for every tenth of the file."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, name: str, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` bytes are there."""
        tenth = 10 * done // max(total, 1)
        if tenth != self._shown:
            self._shown = tenth
            console.print(f"downloading {name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", markup=False)
