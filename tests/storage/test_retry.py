"""What of a store may pass, judged by its own error codes, and how patiently it is asked again."""

from __future__ import annotations

import errno
import time

import pytest

from runner.storage.retry import is_forbidden, is_local_disk_full, is_transient, with_retries

PASSING = (
    *("SlowDown", "ThrottlingException", "RequestTimeout", "IncompleteBody", "BadDigest", "InternalError"),
    *("ExpiredToken", "RequestTimeTooSkewed", "ConditionalRequestConflict", "OperationAborted"),
)
LASTING = ("AccessDenied", "NoSuchKey", "NoSuchBucket", "InvalidArgument", "InvalidAccessKeyId", "PreconditionFailed")


@pytest.mark.parametrize("code", PASSING + LASTING)
def test_an_error_is_judged_by_the_stores_code_and_not_by_its_status(code: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer = {"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    error = ClientError(answer, "GetObject")
    assert is_transient(error) == (code in PASSING)
    assert is_transient(translate_boto_error(error)) == (code in PASSING)


def test_the_status_counts_where_the_code_says_nothing() -> None:
    from botocore.exceptions import ClientError

    def answered(status: int) -> ClientError:
        answer = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return ClientError(answer, "HeadObject")

    assert [status for status in (400, 403, 404, 409, 412, 429, 500, 501, 503) if is_transient(answered(status))] == [
        *(409, 429, 500, 503),
    ]


def test_aiohttps_parser_gives_no_status() -> None:
    from aiohttp import ClientPayloadError
    from aiohttp.http_exceptions import BadStatusLine, ContentLengthError

    broken_off = ClientPayloadError("Response payload is not completed")
    broken_off.__cause__ = ContentLengthError("Not enough data to satisfy content length header.")
    assert is_transient(broken_off)
    assert is_transient(BadStatusLine("garbage"))


def test_googles_refusals_by_rate_are_no_lack_of_permission() -> None:
    assert not is_forbidden(OSError("Forbidden: https://store/x\nUser Rate Limit Exceeded"))
    assert is_transient(OSError("Forbidden: https://store/x\nUser Rate Limit Exceeded"))
    assert not is_transient(OSError("Forbidden: https://store/x\nno storage.objects.get access"))


def test_a_full_disk_of_this_machine_does_not_pass() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert is_local_disk_full(full)
    assert not is_transient(full)


def test_the_last_try_begins_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a pause (SIGSTOP) that was longer than the limit."""
    monkeypatch.setattr("runner.storage.retry.FIRST_PAUSE_S", 0.001)
    failed: list[Exception] = []

    def ask() -> str:
        if not failed:
            time.sleep(0.05)
            raise ConnectionResetError("gone while nobody looked")
        return "given"

    assert with_retries(ask, 0.01, failed.append) == "given"
    assert len(failed) == 1


def test_what_does_not_pass_is_raised_at_once_and_what_does_when_the_time_is_over() -> None:
    failed: list[Exception] = []

    def denied() -> None:
        raise PermissionError("no")

    def away() -> None:
        raise ConnectionResetError("no")

    with pytest.raises(PermissionError):
        with_retries(denied, 30, failed.append)
    assert failed == []
    with pytest.raises(ConnectionResetError):
        with_retries(away, 0.5, failed.append)
    assert len(failed) >= 2
