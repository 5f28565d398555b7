"""Downloads the released weights, and verifies them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import WeightsError
from runner.core.redact import without_credentials

if TYPE_CHECKING:
    from runner.config.schema import AudiosetWeights

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

_ATTEMPTS = 3

_CHUNK = 1 << 16
"""Bytes; what is read of a chunk when a connection breaks is lost, so it is small."""

_WAYS_OUT = (
    "use weights=file weights.path=... for a checkpoint of your own, or weights=random to try the speed "
    "(meaningless embeddings)"
)


@dataclass(frozen=True)
class ReleasedFile:
    """A file of the AudioSet VGGish release."""

    name: str
    bytes: int
    sha256: str


CHECKPOINT = ReleasedFile(
    "vggish_model.ckpt", 291_108_469, "0962b1914e3e053922d957c45bc84a78c985765641dc6bceeeb3a7d8dfecfdf6"
)

PCA_PARAMETERS = ReleasedFile(
    "vggish_pca_params.npz", 73_020, "4d878af3e306defbfb37095365aa7e5a6cecb86bad13e859e626151c4e6a8b9d"
)

RELEASE = (PCA_PARAMETERS, CHECKPOINT)


def fetch(file: ReleasedFile, folder: Path, weights: AudiosetWeights, progress: Progress | None = None) -> Path:
    """The path of a released file in ``folder``, checked; downloaded first if it is absent or damaged.

    Raises:
        WeightsError: it can't be downloaded, or what comes is not the released file.
    """
    path = folder / file.name
    if path.is_file():
        if _is_verified(path, file):
            return path
        log.warning("%s is not the released file (wrong size or sha256): it is downloaded again", path)
    import pooch
    from filelock import FileLock
    from requests import RequestException

    url = weights.base_url.rstrip("/") + "/" + file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{file.name}.lock"):
            if not (path.is_file() and _is_verified(path, file)):
                download = ResumingDownload(file, folder / f".{file.name}.part", weights.timeout_s, progress)
                path.unlink(missing_ok=True)
                pooch.get_logger().setLevel("WARNING")
                pooch.retrieve(url, f"sha256:{file.sha256}", file.name, folder, downloader=download)
                _note_verified(path, file)
    except (RequestException, OSError, ValueError) as error:
        raise WeightsError(
            f"{file.name} could not be downloaded from {without_credentials(url)} "
            f"({without_credentials(_short(error))}): "
            f"put the file into {folder}, or {_WAYS_OUT}"
        ) from error
    return path


class ResumingDownload:
    """A downloader for pooch that keeps what has come, and goes on from there the next time.

    Args:
        file: what is expected; more bytes than that are refused.
        partial: where what has come is kept between attempts and runs.
        timeout_s: for the connection, and for each read, in seconds.
        progress: told (name, bytes done, bytes in all).
    """

    def __init__(self, file: ReleasedFile, partial: Path, timeout_s: float, progress: Progress | None) -> None:
        self._file = file
        self._partial = partial
        self._timeout_s = timeout_s
        self._progress = progress or (lambda name, done, total: None)

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> bool | None:
        """What pooch calls: fetch ``url`` into ``output_file``.

        Raises:
            requests.RequestException: no connection, or it broke too often.
            ValueError: the server's file is not the one expected.
        """
        from requests import ConnectionError as NoConnection
        from requests import Timeout
        from requests.exceptions import ChunkedEncodingError

        for attempt in range(_ATTEMPTS):
            before = self._size()
            try:
                self._attempt(url)
                break
            except (ChunkedEncodingError, NoConnection, Timeout):
                came = self._size() > before
                if attempt == _ATTEMPTS - 1 or not came:
                    raise
                time.sleep(0.2)
        self._partial.replace(output_file)
        if (found := _sha256(Path(output_file))) != self._file.sha256:
            raise ValueError(f"its sha256 is {found[:12]}…, not {self._file.sha256[:12]}…")
        return None

    def _size(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _attempt(self, url: str) -> None:
        import requests

        have, total = self._size(), self._file.bytes
        if have >= total:
            self._partial.unlink()
            have = 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with requests.get(url, headers=headers, stream=True, timeout=self._timeout_s) as response:
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            done = have if resumed else 0
            with self._partial.open("ab" if resumed else "wb") as out:
                for chunk in response.iter_content(_CHUNK):
                    done += len(chunk)
                    if done > total:
                        break
                    out.write(chunk)
                    self._progress(self._file.name, done, total)
        if done > total:
            self._partial.unlink()
            raise ValueError(f"the server's file is larger than {total:,} bytes")
        if done < total:
            raise requests.ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def state_of_released_files(models: Path) -> dict[str, str]:
    """Of each released file below ``models``: ``verified``, ``wrong`` (size or sha256) or ``not here yet``."""
    found = {}
    for file in RELEASE:
        path = models / "vggish" / file.name
        found[file.name] = "not here yet" if not path.is_file() else "verified" if _is_verified(path, file) else "wrong"
    return found


def _is_verified(path: Path, file: ReleasedFile) -> bool:
    """Whether the file is the released one; its hash is computed once and remembered with size and time beside it."""
    if path.stat().st_size != file.bytes:
        return False
    note = _note_path(path)
    try:
        if json.loads(note.read_text()) == _stamp(path, file):
            return True
    except (OSError, ValueError):
        pass
    if _sha256(path) != file.sha256:
        return False
    _note_verified(path, file)
    return True


def _note_verified(path: Path, file: ReleasedFile) -> None:
    try:
        _note_path(path).write_text(json.dumps(_stamp(path, file)))
    except OSError as error:  # a read-only models folder only costs the hash each time
        log.debug("%s", error)


def _note_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified.json")


def _stamp(path: Path, file: ReleasedFile) -> Mapping[str, Any]:
    status = path.stat()
    return {"sha256": file.sha256, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _short(error: BaseException) -> str:
    """The innermost cause, which is what a person can use, without the object addresses of urllib3's wrappers."""
    text = str(error)
    for words, meaning in (
        ("NameResolutionError", "no network, or the host's name can't be resolved"),
        ("Failed to resolve", "no network, or the host's name can't be resolved"),
        ("NewConnectionError", "no connection to the server"),
        ("timed out", "the server did not answer in time"),
    ):
        if words in text:
            return meaning
    return text[:200]
