"""Downloads the released weights, and verifies them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.groups.weights import BASE_URL
from runner.core.errors import WeightsError
from runner.core.files import commit, digest_file
from runner.core.redact import without_credentials

if TYPE_CHECKING:
    from runner.config.schema import AudiosetWeights
    from runner.core.readable import Json

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a file's name, its bytes so far, and all its bytes."""

_TRIES = 3

_RETRY_PAUSE_S = 0.2

_CHUNK_BYTES = 1 << 16
"""Small, as the part of a chunk that was received when a connection breaks is lost."""


@dataclass(frozen=True)
class ReleasedFile:
    """A file of a release; ``url`` is its address where that is not below ``weights.base_url``."""

    name: str
    bytes: int
    sha256: str
    url: str | None = None


CHECKPOINT = ReleasedFile(
    "vggish_model.ckpt", 291_108_469, "0962b1914e3e053922d957c45bc84a78c985765641dc6bceeeb3a7d8dfecfdf6"
)

PCA_PARAMETERS = ReleasedFile(
    "vggish_pca_params.npz", 73_020, "4d878af3e306defbfb37095365aa7e5a6cecb86bad13e859e626151c4e6a8b9d"
)

RELEASE = (PCA_PARAMETERS, CHECKPOINT)


def fetch(file: ReleasedFile, folder: Path, weights: AudiosetWeights, progress: Progress | None = None) -> Path:
    """Return the path of a verified released file; download it first if it is missing or damaged.

    A lock makes processes that need the same file wait for one download.

    Args:
        file: of the release.
        folder: where it is stored.
        weights: ``base_url`` and ``timeout_s``.
        progress: called during the download.

    Raises:
        WeightsError: it can't be downloaded, or the server's file is not the released one.
    """
    path = folder / file.name
    if path.is_file():
        if _is_verified(path, file):
            return path
        log.warning("%s is not the released file (wrong size or SHA-256): downloading it again", path)
    from filelock import FileLock
    from requests import RequestException

    is_mirror = weights.base_url != BASE_URL
    url = file.url if file.url and not is_mirror else weights.base_url.rstrip("/") + "/" + file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{file.name}.lock"):
            if not (path.is_file() and _is_verified(path, file)):
                partial = folder / f".{file.name}.part"
                _Download(url, file, partial, weights.timeout_s, progress).run()
                commit(partial, path)
                _save_verification(path, file)
    except (RequestException, OSError, ValueError) as error:
        reason = without_credentials(_short_reason(error))
        raise WeightsError(
            f"{file.name} could not be downloaded from {without_credentials(url)} ({reason}): put the file into "
            f"{folder}, or use weights=file weights.path=... for a checkpoint of your own, or weights=random to test "
            "the speed (meaningless embeddings)"
        ) from error
    return path


class _Download:
    """A download that resumes from the bytes of earlier tries and commands.

    Args:
        url: of the file.
        file: that is expected; the download stops when more bytes arrive.
        partial: the bytes so far.
        timeout_s: for the connection, and for each read.
        progress: called during the download.
    """

    def __init__(
        self, url: str, file: ReleasedFile, partial: Path, timeout_s: float, progress: Progress | None
    ) -> None:
        self._url = url
        self._file = file
        self._partial = partial
        self._timeout_s = timeout_s
        self._progress = progress or (lambda name, done, total: None)

    def run(self) -> None:
        """Download the file, and verify it.

        Raises:
            requests.RequestException: no connection, or it broke too often.
            ValueError: the server's file is not the expected one.
        """
        import requests
        from requests.exceptions import ChunkedEncodingError

        for try_number in range(1, _TRIES + 1):
            size = self._size()
            try:
                self._try()
                break
            except (ChunkedEncodingError, requests.ConnectionError, requests.Timeout):
                if try_number == _TRIES or self._size() <= size:
                    raise
                time.sleep(_RETRY_PAUSE_S)
        sha256 = digest_file(self._partial).sha256
        if sha256 != self._file.sha256:
            self._partial.unlink()
            raise ValueError(f"its SHA-256 is {sha256[:12]}…, not {self._file.sha256[:12]}…")

    def _size(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _try(self) -> None:
        import requests

        size, total = self._size(), self._file.bytes
        if size >= total:
            self._partial.unlink()
            size = 0
        headers = {"Range": f"bytes={size}-"} if size else {}
        with requests.get(self._url, headers=headers, stream=True, timeout=self._timeout_s) as response:
            response.raise_for_status()
            is_resumed = response.status_code == requests.codes.partial_content
            done = size if is_resumed else 0
            with self._partial.open("ab" if is_resumed else "wb") as out:
                for chunk in response.iter_content(_CHUNK_BYTES):
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
    """Return the state of each released file below ``models``: verified, wrong (size or SHA-256), or not here yet."""
    states = {}
    for file in RELEASE:
        path = models / "vggish" / file.name
        if path.is_file():
            states[file.name] = "verified" if _is_verified(path, file) else "wrong"
        else:
            states[file.name] = "not here yet"
    return states


def _is_verified(path: Path, file: ReleasedFile) -> bool:
    """Return whether a file is the released one; its SHA-256 is computed once, while size and time stay the same."""
    if path.stat().st_size != file.bytes:
        return False
    try:
        if json.loads(_verification_path(path).read_text()) == _verification(path, file):
            return True
    except (OSError, ValueError):
        pass
    if digest_file(path).sha256 != file.sha256:
        return False
    _save_verification(path, file)
    return True


def _save_verification(path: Path, file: ReleasedFile) -> None:
    try:
        _verification_path(path).write_text(json.dumps(_verification(path, file)))
    except OSError as error:  # in a read-only folder the SHA-256 is computed each time
        log.debug("%s", error)


def _verification_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified.json")


def _verification(path: Path, file: ReleasedFile) -> Mapping[str, Json]:
    status = path.stat()
    return {"sha256": file.sha256, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _short_reason(error: BaseException) -> str:
    """Return the cause of a failed download, without the object addresses in urllib3's messages."""
    text = str(error)
    for words, reason in (
        ("NameResolutionError", "no network, or the host's name can't be resolved"),
        ("Failed to resolve", "no network, or the host's name can't be resolved"),
        ("NewConnectionError", "no connection to the server"),
        ("timed out", "the server did not answer in time"),
    ):
        if words in text:
            return reason
    return text[:200]
