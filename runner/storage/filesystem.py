"""Object stores: URLs that an fsspec driver opens (s3://, gs://, hf://).  A file:// URL is a path like any other.

Credentials, regions and endpoints are the drivers' own business, found where each looks by itself (AWS_*, ~/.aws,
GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN): nothing of them is in a configuration, which is logged and stored.
"""

from __future__ import annotations

import logging
import os
import zlib
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runner.core.errors import ConfigError
from runner.core.paths import EXTRAS

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_SILENCE_S = 20.0


def open_store(key: str, url: str, timeout_s: float = 60.0) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and what the URL is called there (``bucket/folder``).

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
        extra = EXTRAS.get(parts.scheme)
        how = f"pip install 'vggish-runner[{extra}]'" if extra else f"install the fsspec driver of {parts.scheme}://"
        raise ConfigError(f"{key}={url} needs a driver that is not installed ({error}): {how}") from error
    except ValueError as error:
        raise ConfigError(f"{key}={url} can't be opened ({error}): use a path, s3://, gs:// or hf://") from error
    return store, str(store._strip_protocol(url))


def store_of(url: str, timeout_s: float = 60.0) -> AbstractFileSystem:
    """The file system of a URL, made once a process, without a cache of listings.

    Args:
        url: of a folder or an object.
        timeout_s: how long a driver may wait for the next byte at most (20 s where that is less).

    Raises:
        ImportError: its driver is not installed.
        ValueError: no driver has its scheme.
    """
    import fsspec

    scheme = url.partition("://")[0]
    return fsspec.filesystem(scheme, use_listings_cache=False, **_driver_options(scheme, min(timeout_s, _SILENCE_S)))


def _driver_options(scheme: str, silence_s: float) -> dict[str, Any]:
    """Options of a driver under which a request fails soon, so that tries and pauses are ours, and reads are whole."""
    if scheme in ("s3", "s3a"):
        config = {"connect_timeout": silence_s, "read_timeout": silence_s, "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": config, "max_concurrency": 1}
    if scheme in ("gs", "gcs"):
        from aiohttp import ClientTimeout

        os.environ.setdefault("DEFAULT_GCSFS_CONCURRENCY", "1")  # more would ask for an object's size before reading it
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of what it then raises
        silence = ClientTimeout(total=None, sock_connect=silence_s, sock_read=silence_s)
        return {"requests_timeout": silence, "retry_timeout": silence_s}  # its own six tries can't be turned off
    return {}


_MODIFIED = ("LastModified", "mtime", "updated", "modified", "created")
"""What drivers call the time of modification."""


def stamp_of(item: dict[str, Any]) -> tuple[int, int]:
    """(size in bytes, time of modification in ns, or a number made of its ETag; −1: unknown) of an object's info."""
    size, modified = item.get("size"), _modified(item)
    if modified < 0 and (tag := next((item[key] for key in ("ETag", "etag", "blob_id") if item.get(key)), None)):
        modified = zlib.crc32(str(tag).encode())
    return -1 if size is None else int(size), modified


def _modified(item: dict[str, Any]) -> int:
    return next((_ns(item[key]) for key in _MODIFIED if key in item), -1)


def _ns(when: Any) -> int:
    """A store's time of modification in ns since 1970; −1 where it gives none that is known here."""
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
        except ValueError:
            return -1
    if isinstance(when, datetime):
        when = when.timestamp()
    return int(when * 1e9) if isinstance(when, int | float) else -1
