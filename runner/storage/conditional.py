"""Conditional requests to object stores, by which exactly one of several writers succeeds.

fsspec has conditional creation (``mode="create"``: If-None-Match on S3, generation 0 on Google's store).  Replacing and
removing one version of an object, and its age by the store's clock, need requests of s3fs and gcsfs themselves.  Both
stores answer 412 where the condition does not hold.  No other driver is known to have all of this.
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
    """A version of an object.

    Attributes:
        data: its content.
        id: different for each version.
        age_s: seconds since it was written, by the store's own clock; whole seconds at best.
    """

    data: bytes
    id: str
    age_s: float


class Conditions(Protocol):
    """Requests of a driver that fsspec does not have.

    Attributes:
        no_version: an id that no version has.
    """

    no_version: str

    async def read(self, filesystem: Any, path: str) -> Version:
        """Read a small object; raises FileNotFoundError."""
        ...

    async def replace(self, filesystem: Any, path: str, data: bytes, version_id: str) -> str:
        """Replace this version of an object; return the id of the new one."""
        ...

    async def remove(self, filesystem: Any, path: str, version_id: str) -> None:
        """Remove this version of an object."""
        ...


class _S3:
    no_version = f'"{"0" * 32}"'

    async def read(self, filesystem: Any, path: str) -> Version:
        bucket, key, _ = filesystem.split_path(path)
        answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            data = await body.read()
        now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return Version(data, answer["ETag"], _age_s(now, answer["LastModified"]))

    async def replace(self, filesystem: Any, path: str, data: bytes, version_id: str) -> str:
        bucket, key, _ = filesystem.split_path(path)
        answer = await filesystem._call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=version_id)
        return str(answer["ETag"])

    async def remove(self, filesystem: Any, path: str, version_id: str) -> None:
        bucket, key, _ = filesystem.split_path(path)
        await filesystem._call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=version_id)


class _Gs:
    no_version = "1"

    async def read(self, filesystem: Any, path: str) -> Version:
        bucket, key, _ = filesystem.split_path(path)
        for try_number in range(1, _TRIES + 1):
            headers, text = await filesystem._call("GET", "b/{}/o/{}", bucket, key)
            info = json.loads(text)
            generation = str(info["generation"])
            try:
                _, data = await filesystem._call("GET", "b/{}/o/{}", bucket, key, alt="media", generation=generation)
            except FileNotFoundError:  # replaced since
                if try_number < _TRIES:
                    continue
                raise
            updated = datetime.fromisoformat(info["updated"].removesuffix("Z") + "+00:00")
            return Version(data, generation, _age_s(headers.get("Date"), updated))
        raise AssertionError

    async def replace(self, filesystem: Any, path: str, data: bytes, version_id: str) -> str:
        bucket, key, _ = filesystem.split_path(path)
        info = await filesystem._call(
            "POST",
            f"{filesystem._location}/upload/storage/v1/b/{quote(bucket, safe='')}/o",
            uploadType="media",
            name=key,
            ifGenerationMatch=version_id,
            headers={"Content-Type": "application/octet-stream"},
            data=data,
            json_out=True,
        )
        return str(info["generation"])

    async def remove(self, filesystem: Any, path: str, version_id: str) -> None:
        bucket, key, _ = filesystem.split_path(path)
        await filesystem._call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=version_id)


def conditions_of(filesystem: object) -> Conditions | None:
    """Return the conditional requests of a driver; None where it has none."""
    protocol = getattr(filesystem, "protocol", ())
    names = (protocol,) if isinstance(protocol, str) else protocol
    if "s3" in names:
        return _S3()
    return _Gs() if "gs" in names else None


def is_refused(error: BaseException | None) -> bool:
    """Return whether an error says that the condition of a request did not hold."""
    if isinstance(error, FileExistsError):
        return True
    response = getattr(error.__cause__, "response", None) if error is not None else None
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return status == 412


def is_unsupported(error: BaseException | None) -> bool:
    """Return whether an error says that the store does not support such a condition."""
    return isinstance(error, NotImplementedError) or (isinstance(error, OSError) and error.errno == errno.ENOSYS)


def _age_s(now: str | None, modified: datetime) -> float:
    """Return the age of an object by the store's clock; 0 where the answer has no date."""
    return max(0.0, (parsedate_to_datetime(now) - modified).total_seconds()) if now else 0.0
