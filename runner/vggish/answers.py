"""The reference's answers, computed once and cached."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.vggish import reference
from runner.vggish.reference import reference_embeddings

log = logging.getLogger(__name__)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """The reference's embeddings of the fixed signals, float32 [16, 128].

    Attributes:
        exact: in float64, rounded once to float32.
        rounded: with weights and activations rounded to the session's precision, which shows the error to expect with
            these weights; in float32 the same as ``exact``.
        cached: whether both came from the cache.
    """

    exact: Array
    rounded: Array
    cached: bool = False


def reference_answers(
    arrays: Mapping[str, Array], checksum: str, windows: Array, cache_dir: Path | None, precision: str = "float32"
) -> tuple[Array, bool]:
    """Return the reference's embeddings of windows, float32 [n, 128], and whether they came from the cache.

    Args:
        arrays: float32 weights by checkpoint name.
        checksum: of the weights.
        windows: float32 [n, 15600].
        cache_dir: folder of the cache; None for no cache.
        precision: to which weights and activations are rounded.
    """

    def compute(windows: Array) -> Array:
        return reference_embeddings(arrays, windows, precision)

    return AnswerCache(cache_dir).get(checksum, windows, compute, precision) if cache_dir else (compute(windows), False)


class AnswerCache:
    """The reference's answers on disk; keyed by weights, signals, precision and the reference's own code.

    Args:
        folder: of the files; in one that can't be written nothing is cached.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, checksum: str, windows: Array, compute: Callable[[Array], Array], precision: str = "float32"
    ) -> tuple[Array, bool]:
        """Return the answers to windows [n, 15600], float32 [n, 128], and whether they came from the cache."""
        key = f"{reference.version()} {checksum} {precision} ".encode() + windows.tobytes()
        path = self._folder / f"{hashlib.sha256(key).hexdigest()[:40]}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                cached, digest = file["answers"], str(file["sha256"])
            if cached.dtype == np.float32 and hashlib.sha256(cached.tobytes()).hexdigest() == digest:
                return cached, True
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            pass
        answers = compute(windows)
        self._put(path, answers)
        return answers, False

    def _put(self, path: Path, answers: Array) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, answers=answers, sha256=hashlib.sha256(answers.tobytes()).hexdigest())
            temporary.replace(path)
        except OSError as error:
            log.info("could not cache the parity reference (%s); it is computed at each run", error)
