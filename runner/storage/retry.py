"""Retries after transient errors of object stores, with exponential backoff; and which errors are transient."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard, TypeVar

from runner.core.files import is_disk_full
from runner.core.interruption import check_interruption, pause

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0

T = TypeVar("T")

PERMANENT_ERRORS = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    NotImplementedError,
)

_PERMANENT_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "ParamValidationError",
    "NoRegionError",
    "InvalidRegionError",
    "TokenRetrievalError",
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
    "InvalidEndpointConfigurationError",
}
"""Errors of the drivers about credentials and settings, by class name."""

_DRIVERS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3", "httpx", "huggingface_hub")

_TRANSIENT_CODES = {
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequests",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "ServiceUnavailable",
    "backendError",
    "RequestTimeout",
    "RequestTimeoutException",
    "PriorRequestNotComplete",
    "OperationAborted",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    # credentials that are renewed, and clocks that are set, while a run continues
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
}
"""Error codes of stores, whatever HTTP status they come with.

``AccessDenied`` is not one: S3 also answers it for a missing object to users who may not list, and every lost clip
would be waited for.  Such clips are tried again by the next command (``runner.output.state.rerun``).
"""

_DENIED_CODES = {"AccessDenied", "Forbidden", "403", "forbidden"}

TRANSIENT_STATUS = (408, 409, 425, 429)

_PERMANENT_SERVER_STATUS = (501, 505)


def with_retries(
    call: Callable[[], T], timeout_s: float, on_error: Callable[[Exception], None] = lambda error: None
) -> T:
    """Call until there is no transient error, with growing, random pauses in between.

    The last try starts when the time limit has passed, so that a pause of the machine or process (SIGSTOP) does not
    count as the last one.

    Args:
        call: the request.
        timeout_s: no try starts later, except the last.
        on_error: called with each error that is followed by another try.

    Raises:
        Exception: the last error of ``call``.
        Interrupted: the command was interrupted, and this is not its main thread.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    while True:
        check_interruption()
        is_last = time.monotonic() >= deadline
        try:
            return call()
        except Exception as error:
            if is_last or not is_transient(error):
                raise
            on_error(error)
        pause(min(deadline - time.monotonic(), pause_s * random.uniform(0.5, 1.0)))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def is_transient(error: BaseException) -> bool:
    """Return whether another try may succeed after this error of a driver."""
    if _codes(error) & _TRANSIENT_CODES:
        return True
    if isinstance(error, PERMANENT_ERRORS) or is_forbidden(error) or is_local_disk_full(error):
        return False
    if type(error).__name__ in _PERMANENT_NAMES:
        return False
    if isinstance(error, TimeoutError) or any(map(_is_broken_answer, _causes(error))):
        return True
    if (status := _status(error)) is not None:
        return (status >= 500 and status not in _PERMANENT_SERVER_STATUS) or status in TRANSIENT_STATUS
    return (
        isinstance(error, OSError) or "Timeout" in type(error).__name__ or type(error).__module__.startswith(_DRIVERS)
    )


def is_forbidden(error: BaseException) -> bool:
    """Return whether the store refused permission.

    gcsfs says so by its message alone, which it also has for too many requests.
    """
    if isinstance(error, PermissionError):
        return True
    text = str(error)
    return type(error) is OSError and text.startswith("Forbidden: ") and "rate limit" not in text.lower()


def is_denied(error: BaseException) -> bool:
    """Return whether the store accepted the credentials, and refused them permission."""
    return is_forbidden(error) and _codes(error) <= _DENIED_CODES


def is_local_disk_full(error: BaseException) -> TypeGuard[OSError]:
    """Return whether a disk of this machine is full, rather than the store's."""
    return is_disk_full(error) and not _codes(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _codes(error: BaseException) -> set[str]:
    return {code for cause in _causes(error) if (code := _code(cause)) is not None}


def _code(error: BaseException) -> str | None:
    """Return the store's error code in an error of botocore or gcsfs."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        code: Any = response.get("Error", {}).get("Code")
    else:
        answer = getattr(error, "_error_response", None)
        reasons = answer.get("errors") if isinstance(answer, dict) else None
        code = reasons[0].get("reason") if isinstance(reasons, list) and reasons else None
    return code if isinstance(code, str) else None


def _is_broken_answer(error: BaseException) -> bool:
    """Return whether it is of aiohttp's parser: the answer is truncated, or not HTTP."""
    return type(error).__module__ == "aiohttp.http_exceptions"


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of any driver."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(response, "status_code", None) or getattr(cause, "status", getattr(cause, "code", None))
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None
