"""The reference's answers, computed once and kept."""

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


def _reference_answers(
    arrays: Mapping[str, NDArray[np.float32]],
    checksum: str,
    windows: NDArray[np.float32],
    kept: Path | None,
    precision: str = "float32",
) -> tuple[NDArray[np.float32], bool]:
    """The reference's answers to windows, and whether they were known already."""

    def compute(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return reference_embeddings(arrays, windows, precision)

    return AnswerCache(kept).get(checksum, windows, compute, precision) if kept else (compute(windows), False)


@dataclass(frozen=True)
class Answers:
    """What the reference answers to the fixed signals, float32 [16, 128] each.

    ``rounded`` is ``exact`` with weights and activations rounded to the session's precision, which tells what error is
    to be expected of these very weights; in float32 it is the same.  ``cached`` is whether both were known already.
    """

    exact: Array
    rounded: Array
    cached: bool = False


class AnswerCache:
    """The reference's answers by weights checksum, so that they are computed once on a machine.

    They are known by the weights, the signals, the precision and the reference's own code: a change of any of these
    has them computed anew.

    Args:
        folder: where they lie; a file that can't be read is computed anew, a folder that can't be written costs that
            each time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, checksum: str, windows: Array, compute: Callable[[Array], Array], precision: str = "float32"
    ) -> tuple[Array, bool]:
        """The answers to windows [n, 15600], float32 [n, 128], and whether they were there already."""
        key = f"{reference.version()} {checksum} {precision} ".encode() + windows.tobytes()
        path = self._folder / f"{hashlib.sha256(key).hexdigest()[:40]}.npz"
        try:
            with np.load(path, allow_pickle=False) as kept:
                found, digest = kept["answers"], str(kept["sha256"])
            if found.dtype == np.float32 and hashlib.sha256(found.tobytes()).hexdigest() == digest:
                return found, True
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
            log.info("the parity reference is not kept (%s): it is computed at each run", error)
