"""A run as one ``STEM_MODEL.npy`` a clip, as ``a_vggish.npy``: the layout of video_features and its users."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.core.errors import RunnerError
from runner.core.files import atomic
from runner.dataset.clip_names import split_range
from runner.output.npz import npz_path

if TYPE_CHECKING:
    from runner.output.reader import EmbeddingReader


def export_npy(reader: EmbeddingReader, folder: Path) -> int:
    """Write each clip's embeddings, float32 [n, d], to ``folder/PATH/STEM_MODEL.npy``; return how many.

    A clip that is a stretch of its file has the stretch in its name: ``STEM_2.5-5_vggish.npy``.

    Raises:
        RunnerError: two clips have the same name, as ``a.wav`` and ``a.flac`` would.
    """
    written: dict[Path, str] = {}
    for clip in reader.clips():
        path = folder / npy_path(clip.name, reader.model.title.lower())
        if path in written:
            raise RunnerError(
                f"{written[path]} and {clip.name} would both be {path}: embed them in runs of their own, or rename one"
            )
        written[path] = clip.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, clip.embeddings)
    return len(written)


def npy_path(clip: str, model: str) -> Path:
    """Return a clip's path below the folder; never one outside of it."""
    name, start, end = split_range(clip)
    path = npz_path(name).with_suffix("")
    stretch = "" if start is None and end is None else f"_{'' if start is None else f'{start:g}'}-"
    return path.with_name(f"{path.stem}{stretch}{'' if end is None else f'{end:g}'}_{model}.npy")
