"""Object stores: URLs that an fsspec driver opens (s3://, gs://, hf://).  A file:// URL is a path like any other.

Credentials, regions and endpoints are the drivers' own business, found where each looks by itself (AWS_*, ~/.aws,
GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN): nothing of them is in a configuration, which is logged and stored.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import unquote, urlsplit

from runner.errors import ConfigError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from runner.config import RunConfig
    from runner.store_output import StoreOutput

EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
"""The extra of this package that has a scheme's driver."""
WORKING_FOLDERS = "stores"
"""Folder, below the outputs, of the folders in which runs and sweeps work whose output is in an object store."""
_SILENCE_S = 20.0


def is_url(value: str | None) -> TypeGuard[str]:
    """Whether a value of the configuration names an object store rather than a path."""
    return value is not None and "://" in value and not value.startswith("file://")


def as_path(value: str) -> str:
    """A path as it is, or the one that a file:// URL means."""
    return unquote(urlsplit(value).path) if value.startswith("file://") else value


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
    return fsspec.filesystem(scheme, use_listings_cache=False, **_patience(scheme, min(timeout_s, _SILENCE_S)))


def _patience(scheme: str, silence_s: float) -> dict[str, Any]:
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


def place_of(output_dir: str | None, folder: object) -> str:
    """What a person is told of where a run's files are: its URL, or its folder."""
    return output_dir if output_dir is not None and is_url(output_dir) else str(folder)


def working_folder(url: str, outputs: Path) -> Path:
    """The folder of this machine in which a run works whose output is in an object store: always the same for a URL."""
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]+", "_", url.rsplit("/", 1)[-1])[:60]
    return outputs / WORKING_FOLDERS / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def check_working_folder(key: str, folder: Path, config: RunConfig) -> None:
    """Whether the folder that Hydra was given is the one of ``output.dir``, which is a URL: it is going to be emptied.

    Raises:
        ConfigError: it is another one.
    """
    url = config.output.dir
    assert url is not None
    if folder != working_folder(url, Path(config.paths.outputs).expanduser()).absolute():
        raise ConfigError(f"{key}={folder} can't be had with output.dir={url}: leave {key} out, or give paths.outputs")


def take_output(folder: Path, config: RunConfig, in_sweep: bool = False) -> StoreOutput | None:
    """The output of a run in an object store, taken for this command; None where it stays on a file system.

    Args:
        folder: the run's (working) folder, which the command has claimed.
        config: the run's configuration.
        in_sweep: whether the run is a job of a sweep.

    Raises:
        ConfigError: another command has it, it can't be used, or it holds something else.
        StoreError: the store doesn't answer.
    """
    if not is_url(config.output.dir):
        return None
    from runner.store_output import take

    return take(folder, config, in_sweep)
