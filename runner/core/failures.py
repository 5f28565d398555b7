"""What ended a run, as a kind and a message: of any exception, and back to an error of the same kind and message."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from runner.core.errors import EngineError, RunnerError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

_FULL_WORDS = ("No space left on device", "Disk quota exceeded")
"""How the system says it; TensorFlow passes it on in a ResourceExhaustedError, as it does for memory."""

_FULL_NAMES = ("OutOfDiskError",)

_MEMORY_NAMES = ("ResourceExhaustedError", "OutOfMemoryError")
"""TensorFlow's and Ray's, by name: neither need be there."""


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
    """The failure that an exception is."""
    if isinstance(error, RunnerError):
        return Failure(error.kind, str(error))
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if any(map(_is_full_disk, _causes(error))):
        told = f"the disk of output.dir is full ({error}): make room, and rerun the same command to resume"
        return Failure("disk_full", told)
    if isinstance(error, OSError) and error.errno is not None:
        told = f"the system refused ({error}): see to the disk or share that it is on, and rerun the same command"
    is_memory = isinstance(error, MemoryError) or type(error).__name__ in _MEMORY_NAMES
    return Failure("out_of_memory" if is_memory else "exception", told)


def error_of(failure: Failure) -> RunnerError:
    """The error that a failure of another process is here: ``failure_of`` gives the same failure for it."""
    return _class_of(failure.kind)(failure.message)


def _class_of(kind: str) -> type[RunnerError]:
    if kind == RunnerError.kind:
        return RunnerError
    return next((each for each in _below(RunnerError) if each.kind == kind), EngineError)


def _below(base: type[RunnerError]) -> Iterator[type[RunnerError]]:
    for each in base.__subclasses__():
        yield each
        yield from _below(each)


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    name = type(error).__name__
    return name in _FULL_NAMES or (name in _MEMORY_NAMES and any(words in str(error) for words in _FULL_WORDS))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it came of: a library that tidies up after a failed write may fail once more."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
