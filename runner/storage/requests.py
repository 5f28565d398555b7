"""Requests to one object store, with retries, a deadline, and an end when the output's lease does.

Drivers try again a few times by themselves; what they give up on is tried again here (``runner.storage.retry``) until
the time limit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runner.core.errors import StoreError
from runner.storage.driver import NO_ANSWER, call_driver
from runner.storage.retry import is_forbidden, is_local_disk_full, is_transient, with_retries
from runner.storage.whole_object import download_object

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from runner.storage.fence import Fence

log = logging.getLogger(__name__)

_WARN_EVERY_S = 10.0

_NOT_RENEWED = "the lease could not be renewed, so that another command may acquire the output"


class StoreRequests:
    """Makes requests to the file system of an object store.

    Args:
        filesystem: fsspec's.
        url: for messages.
        timeout_s: for one request with all its tries, unless the request has a limit of its own.

    Attributes:
        fence: stops requests that write when it ends; None for no end.
    """

    def __init__(self, filesystem: AbstractFileSystem, url: str, timeout_s: float) -> None:
        self.fence: Fence | None = None
        self._filesystem = filesystem
        self._url = url
        self._timeout_s = timeout_s
        self._warn_after = 0.0

    def call(
        self, action: str, timeout_s: float | None, method: str | Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """Call a method of the file system, and again after a transient error.

        Args:
            action: for messages, as in "could not be written"; "written" obeys the fence.
            timeout_s: the limit; None for that of the store.
            method: the name of a method of the file system, or an asynchronous function of it and ``arguments``.
            arguments: for the method.
            options: for the method.

        Raises:
            StoreError: it failed for good; its cause is the driver's error.
            OSError: a disk of this machine is full.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        fence = self.fence if action == "written" else None
        last_transient: list[Exception] = []

        def on_error(error: Exception) -> None:
            last_transient[:] = [error]
            self._warn(error)

        try:
            return with_retries(lambda: self._try(deadline, fence, method, *arguments, **options), limit_s, on_error)
        except Exception as error:
            if is_local_disk_full(error):
                raise
            if not is_transient(error):
                raise StoreError(f"{self._url} can't be {action}: {describe_error(error)}") from error
            reason = describe_error((last_transient or [error])[0])
            raise StoreError(
                f"{self._url} could not be {action} for {limit_s:g} s ({reason}): completed uploads are kept; rerun "
                "the same command to resume"
            ) from error

    def call_or_none(self, *arguments: Any, **options: Any) -> Any:
        """Call a method as ``call`` does; return None where the object does not exist."""
        try:
            return self.call(*arguments, **options)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _warn(self, error: Exception) -> None:
        """Log an error that is retried, at most every ten seconds."""
        now = time.monotonic()
        if now >= self._warn_after:
            self._warn_after = now + _WARN_EVERY_S
            log.warning("%s: %s; retrying", self._url, describe_error(error))

    def _try(
        self, deadline: float, fence: Fence | None, method: str | Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """Make one try; end it at the deadline or with the fence, where the driver can be abandoned."""

        def check_fence() -> None:
            if fence is not None and fence.seconds_left() <= 0:
                raise TimeoutError(_NOT_RENEWED)

        check_fence()
        if method == "get_file":
            name, path = arguments
            return download_object(self._filesystem, name, path, deadline)
        return call_driver(self._filesystem, method, *arguments, deadline=deadline, check=check_fence, **options)


def describe_error(error: BaseException) -> str:
    """Return an error in a few words, for a message."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return f"the bucket or object does not exist ({text or type(error).__name__})"
    if is_forbidden(error):
        return f"no permission ({text or type(error).__name__}): check the credentials in the environment"
    if isinstance(error, StoreError) or (isinstance(error, TimeoutError) and text in (NO_ANSWER, _NOT_RENEWED)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
