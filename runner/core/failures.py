"""Failures of a run as kind and message: made of any exception, and back to an error of the same kind and message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runner.core.errors import EngineError, RunnerError
from runner.core.files import is_disk_full

_FULL_WORDS = ("No space left on device", "Disk quota exceeded")
"""The system's words; TensorFlow repeats them in a ResourceExhaustedError, which it raises for memory, too."""

_FULL_NAMES = ("OutOfDiskError",)

_MEMORY_NAMES = ("ResourceExhaustedError", "OutOfMemoryError")
"""TensorFlow's and Ray's, by name: neither need be installed."""


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    ``kind`` is its word in result.json and in the tag ``failure.kind``, ``message`` the sentence for the user;
    ``signal`` names the signal that ended the worker, and ``log_tail`` is the end of its log.
    """

    kind: str
    message: str
    signal: str | None = None
    log_tail: str = ""


def failure_of(error: BaseException) -> Failure:
    """Describe an exception as a failure."""
    if isinstance(error, RunnerError):
        return Failure(error.kind, str(error))
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if any(map(_is_full_disk, _causes(error))):
        message = f"the disk of output.dir is full ({error}): make room, and rerun the same command to resume"
        return Failure("disk_full", message)
    if isinstance(error, OSError) and error.errno is not None:
        message = f"the system refused ({error}): see to the disk or share that it is on, and rerun the same command"
    is_memory = isinstance(error, MemoryError) or type(error).__name__ in _MEMORY_NAMES
    return Failure("out_of_memory" if is_memory else "exception", message)


def error_of(failure: Failure) -> RunnerError:
    """Rebuild the error of another process's failure, for which ``failure_of`` returns the same failure."""
    return _class_of(failure.kind)(failure.message)


def _class_of(kind: str) -> type[RunnerError]:
    if kind == RunnerError.kind:
        return RunnerError
    return next((error for error in _subclasses(RunnerError) if error.kind == kind), EngineError)


def _subclasses(base: type[RunnerError]) -> Iterator[type[RunnerError]]:
    for error in base.__subclasses__():
        yield error
        yield from _subclasses(error)


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return is_disk_full(error)
    name = type(error).__name__
    return name in _FULL_NAMES or (name in _MEMORY_NAMES and any(words in str(error) for words in _FULL_WORDS))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes: a library that cleans up after a failed write may fail once more."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
