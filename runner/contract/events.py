"""Events of the worker to the command: a JSON object a line on its standard output, named by its ``event``."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass
from typing import IO, TypeAlias

from runner.contract.result import Status
from runner.core.failures import Failure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhaseEvent:
    """The worker begins its next step; ``text`` says more of it than the command's own words for ``name``."""

    name: str
    text: str | None = None


@dataclass(frozen=True)
class DeviceEvent:
    """The device in effect: its kind, its name, and the precision."""

    effective: str
    name: str
    precision: str


@dataclass(frozen=True)
class ProgressEvent:
    """The counts of a run so far.

    Attributes:
        clips: finished, those of earlier attempts included.
        attempt_clips: finished in this attempt.
        skipped: clips of this attempt.
        examples: embedded in this attempt, of clips under way too.
        audio_s: seconds of audio embedded in this attempt, of clips under way too.
        elapsed_s: seconds since the first clip of this attempt.
        clips_under_way: an estimate of what clips under way amount to.
    """

    clips: int
    attempt_clips: int
    skipped: int
    examples: int
    audio_s: float
    elapsed_s: float
    clips_under_way: float = 0.0


@dataclass(frozen=True)
class WarningEvent:
    """A warning that result.json will have, too."""

    message: str


@dataclass(frozen=True)
class EndEvent:
    """The worker's last event: how the run ended, should result.json be lost."""

    status: Status
    failure: Failure | None = None


Event: TypeAlias = PhaseEvent | DeviceEvent | ProgressEvent | WarningEvent | EndEvent

_NAMES: dict[type[Event], str] = {
    PhaseEvent: "phase",
    DeviceEvent: "device",
    ProgressEvent: "progress",
    WarningEvent: "warning",
    EndEvent: "end",
}
_KINDS = {name: kind for kind, name in _NAMES.items()}


def to_line(event: Event) -> str:
    """Return an event as a line of JSON."""
    return json.dumps({"event": _NAMES[type(event)], **asdict(event)}) + "\n"


def parse_event(line: str) -> Event | None:
    """Return the event of a line; None for anything else that was printed, and for a line that a death cut off."""
    try:
        values = json.loads(line)
        kind = _KINDS[values.pop("event")]
        if kind is EndEvent and values["failure"]:
            values["failure"] = Failure(**values["failure"])
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        log.debug("the worker printed %r", line)
        return None


class Events:
    """Sends events to the command; a command that is gone is no error here (standard input ends then).

    Attributes:
        warnings: those sent, for result.json.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.warnings: list[str] = []
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Send one event."""
        with self._lock:
            try:
                self._stream.write(to_line(event))
                self._stream.flush()
            except (OSError, ValueError):
                return

    def phase(self, name: str, text: str | None = None) -> None:
        """Say that the next step begins."""
        self.send(PhaseEvent(name, text))

    def warn(self, message: str) -> None:
        """Log a warning, and send it, once however often it comes."""
        if message not in self.warnings:
            log.warning("%s", message)
            self.warnings.append(message)
            self.send(WarningEvent(message))
