"""Conditional requests to object stores: what makes one writer win, whoever is late.

fsspec has creation (``mode="create"``: If-None-Match on S3, generation 0 on Google's store).  Replacing and removing
one version of an object, and its age by the store's clock, are asked of s3fs and gcsfs themselves here.  Both stores
answer 412 where the condition does not hold.  No other driver is known to have all of this.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote

_TRIES = 5


@dataclass(frozen=True)
class Version:
    """A version of an object, as the store has it.

    ``id`` tells it from what was there under this name before and after, ``age_s`` is by the store's own clock,
    in whole seconds at best.
    """

    data: bytes
    id: str
    age_s: float


class Conditions(Protocol):
    """What a driver does beside what fsspec asks of all."""

    no_version: str
    """A version that no object has."""

    async def look(self, filesystem: Any, path: str) -> Version:
        """A small object; raises FileNotFoundError."""
        ...

    async def replace(self, filesystem: Any, path: str, data: bytes, version: str) -> str:
        """Put another version in the place of this one; the new one's version."""
        ...

    async def remove(self, filesystem: Any, path: str, version: str) -> None:
        """Remove this version."""
        ...


class _S3:
    no_version = f'"{"0" * 32}"'

    async def look(self, filesystem: Any, path: str) -> Version:
        bucket, key, _ = filesystem.split_path(path)
        answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            data = await body.read()
        now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return Version(data, answer["ETag"], _age_s(now, answer["LastModified"]))

    async def replace(self, filesystem: Any, path: str, data: bytes, version: str) -> str:
        bucket, key, _ = filesystem.split_path(path)
        answer = await filesystem._call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=version)
        return str(answer["ETag"])

    async def remove(self, filesystem: Any, path: str, version: str) -> None:
        bucket, key, _ = filesystem.split_path(path)
        await filesystem._call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=version)


class _Gs:
    no_version = "1"

    async def look(self, filesystem: Any, path: str) -> Version:
        bucket, key, _ = filesystem.split_path(path)
        for tries in range(_TRIES):
            headers, text = await filesystem._call("GET", "b/{}/o/{}", bucket, key)
            about = json.loads(text)
            version = str(about["generation"])
            try:
                _, data = await filesystem._call("GET", "b/{}/o/{}", bucket, key, alt="media", generation=version)
            except FileNotFoundError:  # replaced since
                if tries + 1 < _TRIES:
                    continue
                raise
            updated = datetime.fromisoformat(about["updated"].removesuffix("Z") + "+00:00")
            return Version(data, version, _age_s(headers.get("Date"), updated))
        raise AssertionError

    async def replace(self, filesystem: Any, path: str, data: bytes, version: str) -> str:
        bucket, key, _ = filesystem.split_path(path)
        about = await filesystem._call(
            "POST",
            f"{filesystem._location}/upload/storage/v1/b/{quote(bucket, safe='')}/o",
            uploadType="media",
            name=key,
            ifGenerationMatch=version,
            headers={"Content-Type": "application/octet-stream"},
            data=data,
            json_out=True,
        )
        return str(about["generation"])

    async def remove(self, filesystem: Any, path: str, version: str) -> None:
        bucket, key, _ = filesystem.split_path(path)
        await filesystem._call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=version)


def conditions_of(filesystem: object) -> Conditions | None:
    """What the driver of a store has; None where nothing is known of it."""
    protocol = getattr(filesystem, "protocol", ())
    names = (protocol,) if isinstance(protocol, str) else protocol
    if "s3" in names:
        return _S3()
    return _Gs() if "gs" in names else None


def is_refused(error: BaseException | None) -> bool:
    """Whether an error says that a condition did not hold."""
    if isinstance(error, FileExistsError):
        return True
    response = getattr(error.__cause__, "response", None) if error is not None else None
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return status == 412


def is_unknown(error: BaseException | None) -> bool:
    """Whether an error says that the store knows no such condition."""
    return isinstance(error, NotImplementedError) or (isinstance(error, OSError) and error.errno == errno.ENOSYS)


def _age_s(now: str | None, modified: datetime) -> float:
    """How old an object is that was put at ``modified``; 0 where the answer does not say what time it is there."""
    return max(0.0, (parsedate_to_datetime(now) - modified).total_seconds()) if now else 0.0
