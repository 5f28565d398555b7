"""Which weights a run takes, and getting them: found, downloaded once, or random.  No TensorFlow here."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.config import AudiosetWeights, AutoWeights, FileWeights, RandomWeights, WeightsConfig
from runner.errors import WeightsError
from runner.record import without_credentials
from runner.vggish.checkpoint import random_weights, weights_checksum

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


@dataclass(frozen=True)
class WeightsChoice:
    """The weights that a run takes: what was asked, what it got, and why.

    ``path`` and ``pca_path`` are files (None for random weights; no PCA either where none is needed of weights of one's
    own), ``seed`` is of random weights, and ``meaningless`` says that embeddings are good for a speed test only.
    """

    requested: str
    source: str
    path: str | None
    pca_path: str | None
    seed: int | None
    reason: str
    meaningless: bool


@dataclass(frozen=True)
class DrawnWeights:
    """Random weights: float32 arrays by checkpoint name, and their checksum."""

    arrays: dict[str, NDArray[np.float32]]
    checksum: str


def draw_weights(choice: WeightsChoice) -> DrawnWeights | None:
    """Random weights, which need no TensorFlow and so can be drawn while it is imported; None for those in a file."""
    if choice.source != "random":
        return None
    arrays = random_weights(choice.seed or 0)
    return DrawnWeights(arrays, weights_checksum(arrays))


def resolve_weights(
    weights: WeightsConfig,
    models: Path,
    *,
    is_demo: bool,
    needs_pca: bool = False,
    progress: Progress | None = None,
    files: Sequence[ReleasedFile] = RELEASE,
) -> WeightsChoice:
    """Decide on the weights, downloading the released ones if need be.

    Args:
        weights: what the configuration asks for.
        models: the folder whose ``vggish/`` holds the released files.
        is_demo: whether the data are the built-in demo clips, on which ``auto`` may fall back to random weights.
        needs_pca: whether PCA parameters are needed beside weights of one's own.
        progress: told (name, bytes done, bytes in all) during a download.
        files: the release, checkpoint last.

    Raises:
        WeightsError: they can't be had; the message names the ways out.
    """
    if isinstance(weights, RandomWeights):
        return _random("random", weights.seed, "weights=random was asked for.")
    if isinstance(weights, FileWeights):
        path, pca = _own_checkpoint(weights), _own_pca(weights, models, progress) if needs_pca else None
        return WeightsChoice("file", "file", path, pca, None, "weights=file was asked for", False)
    assert isinstance(weights, AudiosetWeights)
    try:
        paths = [fetch(file, models / "vggish", weights, progress) for file in files]
    except WeightsError as error:
        if isinstance(weights, AutoWeights) and is_demo:
            return _random(
                "auto", weights.seed, f"The released weights can't be had, and these are the demo clips. {error}"
            )
        raise
    return WeightsChoice(
        weights.kind,
        "audioset",
        str(paths[-1]),
        str(paths[0]),
        None,
        f"the released weights in {models / 'vggish'}",
        False,
    )


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


def _random(requested: str, seed: int, reason: str) -> WeightsChoice:
    return WeightsChoice(requested, "random", None, None, seed, reason, True)


def _own_checkpoint(weights: FileWeights) -> str:
    path = Path(str(weights.path)).expanduser().absolute()
    if path.is_file() or Path(f"{path}.index").is_file():
        return str(path)
    if path.name.endswith(".index") or path.is_dir():
        raise WeightsError(
            f"weights.path={path} is not a checkpoint: give the V1 file, or the V2 prefix without .index"
        )
    raise WeightsError(f"weights.path={path} does not exist: give a checkpoint's file (V1) or prefix (V2)")


def _own_pca(weights: FileWeights, models: Path, progress: Progress | None) -> str:
    if weights.pca_path is None:
        return str(fetch(PCA_PARAMETERS, models / "vggish", AudiosetWeights(), progress))
    path = Path(weights.pca_path).expanduser().absolute()
    if not path.is_file():
        raise WeightsError(f"weights.pca_path={path} does not exist: give PCA parameters (.npz), or leave it out")
    return str(path)


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
