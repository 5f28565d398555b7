"""Opens object stores: URLs of fsspec's drivers (s3://, gs://, hf://).  A file:// URL is treated as a path.

Credentials, regions and endpoints are found by each driver (AWS_*, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN):
none of them is in a configuration, which is logged and stored.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runner.core.errors import ConfigError
from runner.core.extras import extra_hint

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_MAX_READ_TIMEOUT_S = 20.0

_EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
"""The extra of this package with the driver of a scheme."""

_TIME_KEYS = ("LastModified", "mtime", "updated", "modified", "created")
"""Times of modification in the drivers' infos."""


def open_store(key: str, url: str, timeout_s: float = 60.0) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL, and the URL's path in it (``bucket/folder``).

    Args:
        key: of the configuration, for messages.
        url: as the user gave it.
        timeout_s: as in ``store_of``.

    Raises:
        ConfigError: the URL holds credentials or a query, no driver opens its scheme, or the driver is not installed.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{key} has a user, a query or a fragment in its URL: leave it out (credentials come from the driver's "
            "usual environment, as AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS)"
        )
    try:
        store = store_of(url, timeout_s)
    except ImportError as error:
        extra = _EXTRAS.get(parts.scheme)
        hint = extra_hint(extra) if extra else f"install the fsspec driver of {parts.scheme}://"
        raise ConfigError(f"{key}={url} needs a driver that is not installed ({error}): {hint}") from error
    except ValueError as error:
        raise ConfigError(f"{key}={url} can't be opened ({error}): use a path, s3://, gs:// or hf://") from error
    return store, str(store._strip_protocol(url))


def store_of(url: str, timeout_s: float = 60.0) -> AbstractFileSystem:
    """Return the file system of a URL, one for each process and scheme, without a cache of listings.

    Args:
        url: of a folder or an object.
        timeout_s: how long a driver may wait for the next byte, at most 20 s.

    Raises:
        ImportError: its driver is not installed.
        ValueError: no driver has its scheme.
    """
    import fsspec

    scheme = url.partition("://")[0]
    options = _driver_options(scheme, min(timeout_s, _MAX_READ_TIMEOUT_S))
    return fsspec.filesystem(scheme, use_listings_cache=False, **options)


def _driver_options(scheme: str, read_timeout_s: float) -> dict[str, Any]:
    """Return options with which a driver fails soon, so that retries are ours, and reads each object in one request."""
    if scheme in ("s3", "s3a"):
        config = {
            "connect_timeout": read_timeout_s,
            "read_timeout": read_timeout_s,
            "retries": {"total_max_attempts": 1},
        }
        return {"config_kwargs": config, "max_concurrency": 1}
    if scheme in ("gs", "gcs"):
        from aiohttp import ClientTimeout

        os.environ.setdefault("DEFAULT_GCSFS_CONCURRENCY", "1")  # more would request an object's size before its bytes
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of what it then raises
        timeout = ClientTimeout(total=None, sock_connect=read_timeout_s, sock_read=read_timeout_s)
        return {"requests_timeout": timeout, "retry_timeout": read_timeout_s}  # its six tries can't be turned off
    return {}


def object_stats(info: Mapping[str, Any]) -> tuple[int, int]:
    """Return size in bytes and time of modification in ns of an object's info; −1 for what is unknown.

    Where there is no time, a number made of the object's ETag takes its place.
    """
    size, modified = info.get("size"), modified_ns(info)
    if modified < 0 and (etag := next((info[key] for key in ("ETag", "etag", "blob_id") if info.get(key)), None)):
        modified = zlib.crc32(str(etag).encode())
    return -1 if size is None else int(size), modified


def modified_ns(info: Mapping[str, Any]) -> int:
    """Return the time of modification in an object's info, in ns since 1970; −1 if it is unknown."""
    return next((to_ns(info[key]) for key in _TIME_KEYS if key in info), -1)


def to_ns(time: Any) -> int:
    """Convert a driver's time to ns since 1970; −1 if it is unknown."""
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time.replace("Z", "+00:00"))
        except ValueError:
            return -1
    if isinstance(time, datetime):
        time = time.timestamp()
    return int(time * 1e9) if isinstance(time, int | float) else -1
