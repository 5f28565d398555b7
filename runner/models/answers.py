"""The reference's answers to the gate's signals, computed once and cached."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.core.files import atomic

if TYPE_CHECKING:
    from runner.core.model_spec import Output

log = logging.getLogger(__name__)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """A model's rows for the fixed signals by its reference, float32 [16, width].

    Attributes:
        exact: in float64, rounded once to float32, or in the reference's own precision.
        rounded: with weights and activations rounded to the session's precision, which shows the error to expect with
            these weights; in float32 the same as ``exact``. None for a reference that can't round.
        cached: whether both came from the cache.
        log_mel: float64 [16, frames, bands], for a program that gives its own; None for others.
        outputs: of the rows, each of which is measured by itself; the row is one output where it is empty.
        reference: how the answers were computed.
    """

    exact: Array
    rounded: Array | None
    cached: bool = False
    log_mel: NDArray[np.float64] | None = None
    outputs: tuple[Output, ...] = ()
    reference: str = "NumPy float64"


class AnswerCache:
    """A reference's answers on disk.

    Args:
        folder: of the files; in one that can't be written nothing is cached. None: cache nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: str, windows: Array, compute: Callable[[Array], Array]) -> tuple[Array, bool]:
        """Return the answers to windows, float32 [n, width], and whether they came from the cache.

        Args:
            key: what they depend on besides the windows: reference, weights, precision.
            windows: float32 [n, samples].
            compute: the reference.
        """
        if self._folder is None:
            return compute(windows), False
        digest = hashlib.sha256(f"{key} ".encode() + windows.tobytes()).hexdigest()
        path = self._folder / f"{digest[:40]}.npz"
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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path, shared=True) as temporary, temporary.open("wb") as file:
                np.savez(file, answers=answers, sha256=hashlib.sha256(answers.tobytes()).hexdigest())
        except OSError as error:
            log.info("could not cache the parity reference (%s); it is computed at each run", error)
