"""Retries of what may pass."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard, TypeVar

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0

T = TypeVar("T")

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

PERMANENT_ERRORS = (
    *(FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError),
    NotImplementedError,
)

_LASTING_NAMES = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("ParamValidationError", "NoRegionError", "InvalidRegionError", "TokenRetrievalError", "SSOTokenLoadError"),
    *("UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError", "InvalidEndpointConfigurationError"),
}
"""What the drivers raise about credentials and settings: another try is no use."""

_DRIVERS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3", "httpx", "huggingface_hub")

_PASSING_CODES = {
    *("SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "ThrottledException"),
    *("RequestThrottled", "RequestThrottledException", "TooManyRequests", "TooManyRequestsException"),
    *("RequestLimitExceeded", "BandwidthLimitExceeded", "rateLimitExceeded", "userRateLimitExceeded"),
    *("InternalError", "InternalFailure", "InternalServerError", "ServiceUnavailable", "backendError"),
    *("RequestTimeout", "RequestTimeoutException", "PriorRequestNotComplete", "OperationAborted"),
    *("ConditionalRequestConflict", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    # Credentials that are renewed, and clocks that are set, while a run goes on.
    *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "RequestTimeTooSkewed"),
}
"""Error codes of stores, whatever HTTP status they come with.

``AccessDenied`` is none: it is also what S3 answers about an object that is not there to those who may not list, so
that every lost clip would be waited for.  Such clips are tried again by the next command
(``runner.output.state.redo``).
"""

_DENIED = {"AccessDenied", "Forbidden", "403", "forbidden"}

TRANSIENT_STATUS = (408, 409, 425, 429)

_NEVER_STATUS = (501, 505)


def with_retries(ask: Callable[[], T], timeout_s: float, failed: Callable[[Exception], None] = lambda error: None) -> T:
    """Ask a store until it answers, with growing, random pauses in between.

    The last try begins when the time is over: one that a pause of the whole machine or process (SIGSTOP) cost is
    followed by another.

    Args:
        ask: the request; asked again when it raises what may pass.
        timeout_s: no try is begun later, but for the last.
        failed: told of each error after which there is another try, for a log.

    Raises:
        Exception: the last one that ``ask`` raised.
    """
    end = time.monotonic() + timeout_s
    pause = FIRST_PAUSE_S
    while True:
        is_last = time.monotonic() >= end
        try:
            return ask()
        except Exception as error:
            if is_last or not is_transient(error):
                raise
            failed(error)
        time.sleep(max(0.0, min(end - time.monotonic(), pause * random.uniform(0.5, 1.0))))
        pause = min(2 * pause, LONGEST_PAUSE_S)


def is_transient(error: BaseException) -> bool:
    """Whether an error of a driver may be gone at the next attempt."""
    if _codes(error) & _PASSING_CODES:
        return True
    if isinstance(error, PERMANENT_ERRORS) or is_forbidden(error) or is_disk_full(error):
        return False
    if type(error).__name__ in _LASTING_NAMES:
        return False
    if isinstance(error, TimeoutError) or any(map(_is_cut_off, _causes(error))):
        return True
    if (status := _status(error)) is not None:
        return (status >= 500 and status not in _NEVER_STATUS) or status in TRANSIENT_STATUS
    return (
        isinstance(error, OSError) or "Timeout" in type(error).__name__ or type(error).__module__.startswith(_DRIVERS)
    )


def is_forbidden(error: BaseException) -> bool:
    """Whether the store does not permit it; gcsfs says so by its message alone, also where it was too many requests."""
    if isinstance(error, PermissionError):
        return True
    told = str(error)
    return type(error) is OSError and told.startswith("Forbidden: ") and "rate limit" not in told.lower()


def is_denied(error: BaseException) -> bool:
    """Whether the credentials are good, and this is not permitted to them."""
    return is_forbidden(error) and _codes(error) <= _DENIED


def is_disk_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether a disk of this machine is full."""
    return isinstance(error, OSError) and error.errno in _FULL and not _codes(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _codes(error: BaseException) -> set[str]:
    return {code for each in _causes(error) if (code := _code(each)) is not None}


def _code(error: BaseException) -> str | None:
    """The store's error code, by botocore's and gcsfs's errors."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        code: Any = response.get("Error", {}).get("Code")
    else:
        told = getattr(error, "_error_response", None)
        reasons = told.get("errors") if isinstance(told, dict) else None
        code = reasons[0].get("reason") if isinstance(reasons, list) and reasons else None
    return code if isinstance(code, str) else None


def _is_cut_off(error: BaseException) -> bool:
    """Whether it is of aiohttp's parser: what came is no answer, or not all of it."""
    return type(error).__module__ == "aiohttp.http_exceptions"


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about, by what the drivers' own errors say."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(response, "status_code", None) or getattr(each, "status", getattr(each, "code", None))
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None
