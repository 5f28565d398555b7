"""Which errors of an object store are tried again, and for how long."""

from __future__ import annotations

import pytest

from runner.core.errors import StoreError
from runner.output.state.rerun import ObjectProbe
from runner.storage import object_store as store_client
from runner.storage.object_store import ObjectStore
from runner.storage.retry import is_transient


class Flaky:
    """A file system in which a method fails some times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error

    def rm_file(self, path: str) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.error


def flaky_store(monkeypatch: pytest.MonkeyPatch, flaky: Flaky, timeout_s: float) -> ObjectStore:
    monkeypatch.setattr(store_client, "open_store", lambda key, url: (flaky, "bucket/run"))
    monkeypatch.setattr("runner.storage.retry.FIRST_PAUSE_S", 0.001)
    return ObjectStore("s3://bucket/run", timeout_s)


def test_what_may_pass_is_tried_again_and_the_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = Flaky(6, ConnectionResetError("gone"))
    flaky_store(monkeypatch, flaky, 30).remove("name")
    assert flaky.left == -1
    lasting = Flaky(6, PermissionError("Forbidden"))
    with pytest.raises(StoreError, match=r"s3://bucket/run can't be written: no permission \(Forbidden\)"):
        flaky_store(monkeypatch, lasting, 30).remove("name")
    assert lasting.left == 5
    endless = Flaky(10**9, OSError(16, "Slow down"))
    with pytest.raises(StoreError, match=r"s3://bucket/run could not be written for 0\.05 s"):
        flaky_store(monkeypatch, endless, 0.05).remove("name")
    assert endless.left < 10**9 - 2


def test_errors_are_told_apart_by_their_status() -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    def translated(status: int) -> OSError:
        answer = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
        error = OSError(5, "translated")
        error.__cause__ = ClientError(answer, "PutObject")
        return error

    assert [is_transient(translated(status)) for status in (400, 429, 500, 503)] == [False, True, True, True]
    assert is_transient(EndpointConnectionError(endpoint_url="http://nowhere"))
    assert not is_transient(NoCredentialsError())
    assert not is_transient(KeyError("a mistake of ours"))


def test_objects_of_a_store_that_is_silent_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Silent:
        def cat_file(self, url: str, start: int, end: int) -> bytes:
            asked.append(url)
            raise (FileNotFoundError(url) if len(asked) < 3 else TimeoutError(url))

    monkeypatch.setattr("runner.output.state.rerun.store_of", lambda url: Silent())
    monkeypatch.setattr("runner.output.state.rerun._REQUEST_TIMEOUT_S", 0.0)
    probe = ObjectProbe()
    assert [probe.exists(f"s3://bucket/{number}.wav".encode()) for number in range(6)] == [False] * 6
    assert len(asked) == 3
